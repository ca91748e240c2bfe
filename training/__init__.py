"""How the embedded models were made, and how they are measured."""
