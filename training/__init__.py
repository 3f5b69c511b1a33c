"""How runs are made, to become rows of the run table.

This folder will hold the sweeps that fine-tune one ladder of base models by full fine-tuning,
LoRA and prompt tuning at several data sizes, and append a row to a run table as each run ends.
From `tunecast.models` it will import the run table alone, so that a machine that trains needs no
sampler.
"""
