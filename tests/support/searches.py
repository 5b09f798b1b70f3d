"""Tickets that the tests of the packed file share, and files that lie about themselves."""

import hashlib
import json
import struct
import zlib

import torch
from networks import conv_net, images

from regraft.tickets import IteRand, edge_popup, named_masks


def search(law="signed_kaiming_constant", redraw=True, sparsity=0.6, **more):
    """Return a masked network as a search would leave it."""
    torch.manual_seed(3)
    model = edge_popup(
        conv_net(), weight_init=law, sparsity=sparsity, score="magnitude", seed=5, **more
    )
    model(images()[0])  # running statistics that no seed gives back
    if redraw:
        iterand = IteRand(model, every=1, rate=0.5)
        for seed in range(4):
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                for _, entry, _ in named_masks(model):
                    entry.original += 0.1 * torch.randn(entry.original.shape, generator=generator)
            iterand.step()
    return model.eval()


def resigned(data, change=None):
    """Return a ticket file whose header went through `change`, with a digest that fits."""
    body = data[:-16]
    if change is not None:
        start, schema, short, _ = struct.unpack_from("<8sHII", data)
        header = json.loads(zlib.decompress(body[18 : 18 + short]))
        change(header)
        text = json.dumps(header).encode()
        packed = zlib.compress(text, 9)
        rest = body[18 + short :]
        body = struct.pack("<8sHII", start, schema, len(packed), len(text)) + packed + rest
    return body + hashlib.blake2b(body, digest_size=16).digest()
