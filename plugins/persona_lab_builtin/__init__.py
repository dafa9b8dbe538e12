"""The built-in plugins. They use `persona_lab.api` and nothing else, and load through the same door as everybody's."""
