"""How 2DRCL is run: the command line, one file per command, and the launching of processes."""
