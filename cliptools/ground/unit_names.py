"""Units as people write them."""


def unit_name(layer: int, neuron: int, head: int) -> str:
    """`6:391`, `6:391.3` with a head, `6:.3` for a whole head; -1 is what a unit has not."""
    return f"{layer}:" + (str(neuron) if neuron >= 0 else "") + (f".{head}" if head >= 0 else "")
