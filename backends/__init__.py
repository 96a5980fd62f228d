"""The backends, one package each; imported as `irx.backends`."""
