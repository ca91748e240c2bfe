"""The manual pages and completion scripts that come with the commands, made from the commands' own options and help texts."""
