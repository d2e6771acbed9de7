"""Diffusion Policy's transformer against torch's own decoder, its masks, its size and its dropout."""

import pytest
import torch
from torch import nn

from offrl.diffusion.conditional_unet import init_weights
from offrl.diffusion.layers import sinusoid
from offrl.diffusion.transformer import DiffusionTransformer, _Dropout, decays

SMALL = {"layers": 2, "heads": 2, "width": 8, "dropout": 0.0}


def make(horizon=6, n_obs=3, seed=0, **settings):
    net = DiffusionTransformer(2, 5, horizon, n_obs, **(SMALL | settings))
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=g))
    return net


def draws(*shape, seed=3):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_published_size():
    """PushT, low-dimensional: 16 actions of 2, observations of 20, two of them; 8 layers, 4 heads, 256."""
    with torch.device("meta"):
        net = DiffusionTransformer(2, 20, 16, 2)
    w, layer = 256, 2 * (4 * 256**2 + 4 * 256) + 8 * 256**2 + 5 * 256 + 6 * 256
    ends = (2 * w + w) + 16 * w + (20 * w + w) + 3 * w + (8 * w**2 + 5 * w) + 2 * w + (2 * w + 2)
    assert sum(p.numel() for p in net.parameters()) == 8 * layer + ends == 8_965_122
    shapes = {name: tuple(p.shape) for name, p in net.named_parameters()}
    assert shapes["pos_emb"] == (1, 16, 256)
    assert shapes["cond_pos_emb"] == (1, 3, 256)
    assert shapes["cond_obs_emb.weight"] == (256, 20)
    assert shapes["encoder.0.weight"] == (1024, 256)
    assert shapes["decoder.layers.7.multihead_attn.in_proj_weight"] == (768, 256)
    assert shapes["decoder.layers.0.linear1.weight"] == (1024, 256)
    assert shapes["head.weight"] == (2, 256)


def test_names_shapes_and_outputs_are_those_of_torchs_decoder():
    net = make()
    layer = nn.TransformerDecoderLayer(8, 2, 32, 0.0, "gelu", batch_first=True, norm_first=True)
    decoder = nn.TransformerDecoder(layer, 2)
    decoder.load_state_dict(net.decoder.state_dict())  # strict
    x, time, seen = draws(4, 6, 2), torch.tensor([0.0, 3.0, 50.0, 99.0]), draws(4, 15)
    causal = torch.full((6, 6), float("-inf")).triu(1)
    t, s = torch.arange(6)[:, None], torch.arange(4)[None]
    memory_mask = torch.where(t >= s - 1, 0.0, float("-inf"))  # the time is the memory's first token
    told = torch.cat((sinusoid(time, 8)[:, None], net.cond_obs_emb(seen.view(4, 3, 5))), 1) + net.cond_pos_emb
    out = decoder(net.input_emb(x) + net.pos_emb, net.encoder(told), causal, memory_mask)
    torch.testing.assert_close(net(x, time, seen), net.head(net.ln_f(out)), rtol=1e-5, atol=1e-5)


def test_an_action_sees_no_later_action_and_no_observation_after_its_step():
    net, x, time, seen = make(), draws(1, 6, 2), torch.zeros(1), draws(1, 15)
    base = net(x, time, seen)[0]

    def changed(x=x, seen=seen):
        return ((net(x, time, seen)[0] - base).abs().amax(1) > 1e-6).tolist()

    for row in range(6):
        other = x.clone()
        other[0, row] += 1
        assert changed(x=other) == [h >= row for h in range(6)]
    for step in range(3):
        other = seen.clone()
        other[0, 5 * step : 5 * step + 5] += 1
        assert changed(seen=other) == [h >= step for h in range(6)]
    assert ((net(x, time + 9, seen)[0] - base).abs().amax(1) > 1e-6).all()


def test_dropout_drops_its_share_keeps_the_mean_and_draws_from_each_seeds_stream():
    net, x, time, seen = make(dropout=0.25), draws(5, 6, 2), torch.zeros(5), draws(5, 15)
    streams = [torch.Generator().manual_seed(s) for s in (1, 2)]
    keeps = net.draw_keeps(5, streams)
    assert [tuple(k.shape[1:]) for k in keeps] == net.keep_shapes(5)
    assert len(keeps) == 2 * 6
    alone = net.draw_keeps(5, [torch.Generator().manual_seed(2)])
    assert all(torch.equal(k[1], a[0]) for k, a in zip(keeps, alone, strict=True))
    share = torch.cat([k.flatten().float() for k in keeps]).mean().item()
    assert share == pytest.approx(0.75, abs=0.02)
    everything = [torch.ones_like(k[0]) for k in keeps]
    net.dropout = 0.0
    whole = net(x, time, seen)
    torch.testing.assert_close(net(x, time, seen, everything), whole)
    net.dropout = 0.25
    assert (net(x, time, seen, [k[0] for k in keeps]) - whole).abs().max() > 1e-3
    torch.testing.assert_close(net(x, time, seen), whole)  # nothing is dropped when acting
    torch.testing.assert_close(
        _Dropout([torch.tensor([True, False])], 0.25)(torch.ones(2)), torch.tensor([4 / 3, 0])
    )
    nothing = [torch.zeros_like(k[0]) for k in keeps]
    torch.testing.assert_close(
        net(x, time, seen, nothing), net.head(net.ln_f(net.input_emb(x) + net.pos_emb))
    )


def test_the_start_is_the_published_one_and_only_matrices_decay():
    with torch.device("meta"):
        net = nn.ModuleDict({"transformer": DiffusionTransformer(2, 20, 16, 2, layers=1)})
    start = init_weights(net, [torch.Generator().manual_seed(s) for s in (0, 1)])
    for name, value in start.items():
        if name.endswith("bias"):
            assert (value == 0).all(), name
        elif "norm" in name or "ln_f" in name:
            assert (value == 1).all(), name
        else:
            assert value.std().item() == pytest.approx(0.02, rel=0.15), name
            assert not torch.equal(value[0], value[1])
    still = {n.removeprefix("transformer.") for n in start if not decays(n)}
    norms = {f"decoder.layers.0.norm{i}.weight" for i in (1, 2, 3)} | {"ln_f.weight"}
    assert still == norms | {"pos_emb", "cond_pos_emb"} | {
        n.removeprefix("transformer.") for n in start if n.endswith("bias")
    }


@pytest.mark.parametrize(
    "change", [{"width": 9}, {"heads": 3}, {"layers": 0}, {"dropout": 1.0}, {"width": 2}]
)
def test_sizes_that_do_not_fit_are_refused(change):
    with pytest.raises(ValueError, match=r"width must|dropout must"):
        make(**change)
