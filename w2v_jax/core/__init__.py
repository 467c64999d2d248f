"""What every other room may use: types, configs, the command line, units, files. Imports nothing of the package."""
