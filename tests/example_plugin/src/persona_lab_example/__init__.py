"""A third-party plugin package for tests: one module that works, four that fail in different ways."""
