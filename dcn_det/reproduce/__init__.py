"""The paper's tables as steps over ordinary commands, with their state in files."""
