"""`persona-lab bench-strategies`: trains every strategy over several seeds, evaluates all of them, writes the table."""
