"""What a tied model is made of: path copies, derived attributes, regions.

* `copy_paths.py` copies modules, `path_copy.py` makes their classes: `tied_module.py` those that
  read derived tensors (`derived.py`), `region.py` those that have graphs, too (`variant.py`).
* `call_cache.py`, `casts.py` and `recompute.py` save work and memory.
* `sharded.py`, `fsdp.py`, `placed.py` and `dtensors.py` are for models over several processes.
"""
