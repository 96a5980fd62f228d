"""The frontends: from a model of some kind to a Program; imported as `irx.frontends`."""
