"""Fixtures: workshop, tiny_model, tiny_persona."""

pytest_plugins = ["persona_lab.testing.pytest_plugin"]
