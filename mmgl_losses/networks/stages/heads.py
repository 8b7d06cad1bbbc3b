"""What makes the output: layers with no further layer between them and it."""

from dataclasses import dataclass, field

from mmgl_losses.networks.recorder import Node, Trace


@dataclass(eq=False)
class Heads:
    """The heads of a network.

    Attributes:
        layers: the last layers, and the products of two maps (of queries and places) that stand in for one.
        nodes: what they made, and all that follows.
        ends: what is given to them; where the network returns features, those.
    """

    layers: list[int] = field(default_factory=list)
    nodes: set[int] = field(default_factory=set)
    ends: list[int] = field(default_factory=list)


def find_heads(trace: Trace) -> Heads:
    """Go back from each output to the last layers; where hidden layers end instead, the output is a feature.

    A hidden layer is followed by a normalisation or a rectifier, a head is not.
    """
    nodes, heads = trace.nodes, Heads()
    maps = [found for i in trace.outputs if (found := nodes[i].map) is not None]
    differ = len({found.channels for found in maps}) > 1 and len({found.size for found in maps}) > 1
    finest = min((found.fineness for found in maps), default=None)
    for output in trace.outputs:
        layers, passed, bare = _last_layers(nodes, output)
        found = nodes[output].map
        if differ and found is not None and found.fineness != finest:
            bare = False  # features of several levels
        if _spatial(nodes[output]) and (not bare or _feeds(nodes, output, trace.outputs)):
            heads.ends.append(output)
        else:
            heads.layers += layers
            heads.nodes |= passed
    heads.ends += [carrier for i in heads.layers for carrier in nodes[i].carriers]
    if not any(
        _spatial(nodes[i]) for i in heads.ends
    ):  # classes of the whole image: the last maps before they are pooled
        heads.ends = _pooled(nodes, heads.ends)
    return heads


def _feeds(nodes: list[Node], output: int, outputs: list[int]) -> bool:
    """Another output, of other channels, is made from this one: features beside the logits."""
    others = [i for i in outputs if i != output and nodes[i].shape[1:2] != nodes[output].shape[1:2]]
    seen, todo = set(), list(others)
    while todo:
        index = todo.pop()
        if index not in seen and index >= output:
            seen.add(index)
            todo += nodes[index].inputs
    return output in seen


def _spatial(node: Node) -> bool:
    return any(axis.spatial for axis in node.layout)


def _last_layers(nodes: list[Node], output: int) -> tuple[list[int], set[int], bool]:
    """The last layers before an output, what lies between, and whether one of them ends as a head does."""
    layers: dict[int, bool] = {}
    seen: dict[int, bool] = {}
    todo = [(output, True)]
    while todo:
        index, bare = todo.pop()
        if seen.get(index, False) or (index in seen and not bare):
            continue
        seen[index] = bare
        node = nodes[index]
        if node.weighted or node.product:
            layers[index] = layers.get(index, False) or bare or _narrows(nodes, index)
            continue
        bare = bare and not node.normalised and not node.rectified
        todo += [(i, bare) for i in node.inputs]
    passed = {i for i in seen if nodes[i].inputs}
    return list(layers), passed, any(layers.values())


def _narrows(nodes: list[Node], layer: int) -> bool:
    """A projection of maps as fine as the image to fewer channels: a head, even if an activation follows."""
    made, given = nodes[layer].last, nodes[nodes[layer].carriers[0]].last
    if made is None or given is None or nodes[layer].mixes:
        return False
    return made.channels < given.channels and made.fineness <= 1


def _pooled(nodes: list[Node], ends: list[int]) -> list[int]:
    """The last spatial nodes on the way to vectors."""
    found, seen, todo = [], set(), list(ends)
    while todo:
        index = todo.pop()
        if index in seen:
            continue
        seen.add(index)
        if _spatial(nodes[index]):
            found.append(index)
        else:
            todo += nodes[index].inputs
    return found
