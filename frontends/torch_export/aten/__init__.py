"""Rules for aten operators, one file per family; files are found by being here."""
