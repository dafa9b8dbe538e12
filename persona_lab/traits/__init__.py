"""Trait sliders: the library of traits, their vectors and what a slider means on a model. See docs/traits.md."""
