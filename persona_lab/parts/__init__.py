"""The engine in parts, so that each can be read in a sitting: one room of the house is what each opens."""
