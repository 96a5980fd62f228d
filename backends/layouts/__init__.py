"""How weights lie in memory, whoever reads them: the base of all layouts, and packed formats taken apart."""
