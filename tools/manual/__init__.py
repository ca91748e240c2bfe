"""Generator of manual pages and completion scripts from the options and help texts of the commands."""
