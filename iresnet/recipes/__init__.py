"""One YAML file for each published experiment, or its small variant."""
