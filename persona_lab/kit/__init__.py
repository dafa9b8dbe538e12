"""For plugin authors: `persona-lab new-plugin` makes a package that installs and passes its own tests."""
