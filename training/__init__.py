"""How runs are made, to become rows of the run table.

`tunecast.training.sweep.sweep` makes every run of a recipe (`tunecast.training.recipes`): a task, a
base model, a method, so many examples, a seed. `tunecast.training.callback.RunTableCallback` adds a
row from training that is not ours. From `tunecast.models` this folder imports the run table, the
errors and the writing of files alone, so that a machine that trains needs no sampler. Its own
packages come with ``pip install 'tunecast[train]'``.
"""
