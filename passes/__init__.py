"""The passes, one file each in a folder by stage; imported as `irx.passes`."""
