"""`fxtie.files`: round trips, what can't be saved, and what can't be loaded. See test_container.py
for files that are not whole."""

from __future__ import annotations

import copy
import os
import pickle
import re
from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn

import fxtie
from fxtie.errors import FileError, FxtieError
from fxtie.life import container
from fxtie.life.saving import check_saveable, load, save
from fxtie.transforms import (
    ChannelScale,
    LowRank,
    Mix,
    chain,
    crop,
    flip,
    mean,
    neg,
    pad,
    resize,
    rot90,
    scale,
    square,
    standardize,
    tile,
)
from fxtie.transforms.registry import register


class Kept(nn.Module):
    """Its root can't be traced; it has buffers, one of them not persistent."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("offset", torch.arange(4))
        self.register_buffer("hidden", torch.ones(4), persistent=False)

    def forward(self, x):
        x = self.norm(self.a(x)) + self.offset * self.hidden
        return self.b(x) if x.sum() > 0 else self.b(-x)


class Shared(nn.Module):
    """One Parameter under two names, one module under two names."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
        self.head.weight = self.embed.weight
        self.one = self.two = nn.Linear(4, 4)
        self.last = nn.Linear(4, 4)

    def forward(self, x):
        return self.last(self.two(self.one(self.head(self.embed(x)))))


class Odd(nn.Module):
    """Names that mean something else as patterns."""

    def __init__(self):
        super().__init__()
        for name in ("re:a", "a", "b*[é", "bb*[é", "c"):
            self.add_module(name, nn.Linear(4, 4))

    def forward(self, x):
        for layer in self._modules.values():
            x = layer(x)
        return x


@register("tests.files.Gain")
class Gain(nn.Module):
    """A learnable transform without `for_target`, in float32 until it is moved."""

    def __init__(self, start: float = 1.0) -> None:
        super().__init__()
        self.start = start
        self.gain = nn.Parameter(torch.tensor(start))
        self.register_buffer("calls", torch.zeros(2, 1, dtype=torch.int64))

    def forward(self, source):
        return source * self.gain


@register("tests.files.Growing")
class Growing(nn.Module):
    """Has tensors that its arguments don't tell of."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, source):
        return source * self.late


def linears(n=4, features=4):
    return nn.Sequential(*(nn.Linear(features, features) for _ in range(n)))


def convs(n=3):
    return nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(n)))


def bank_rules(n=2):
    bank = fxtie.Bank(n, (4, 4))
    return [fxtie.Rule(f"{i}", bank, Mix(n), bias=None) for i in range(3)]


def two_bank_rules():
    """Two banks used in turns, and a tie that names one template of one of them."""
    first, second = fxtie.Bank(2, (4, 4)), fxtie.Bank(1, (4, 4))
    return [
        fxtie.Rule("2", second, neg, bias=None),
        fxtie.Rule("0", first, mean(), bias=None),
        fxtie.Rule("1", first, Mix(2), bias=None),
        fxtie.Tie("3.weight", "ties.bank_2.templates.1", square),
    ]


def shared_rules():
    learned = LowRank(2).for_target(torch.empty(4, 4))
    return [
        fxtie.Rule("3", "0", weight=learned, bias=None),
        fxtie.Rule("1", "0", weight=learned, bias=None),
    ]


def partly_shared_rules():
    """The chains fit apart, and share the members that are fitted already, buffers too."""
    learned = chain(ChannelScale().for_target(torch.empty(4, 4)), Gain(2.0), LowRank(1))
    return [
        fxtie.Rule("1", "0", weight=chain(square, learned), bias=None),
        fxtie.Rule("2", "0", weight=chain(neg, learned), bias=None),
    ]


CASES = {
    "plain": (linears, lambda: fxtie.Rule("2", "0", weight=torch.square)),
    "several": (
        linears,
        lambda: [fxtie.Rule("1", ("0", "3"), weight=mean(), bias=mean()), fxtie.Rule("2", "0")],
    ),
    "kept root": (Kept, lambda: fxtie.Rule("b", "a", weight=neg)),
    "learnable": (linears, lambda: fxtie.Rule("*", "0", weight=LowRank(1), bias=ChannelScale())),
    "learnable, shared": (linears, shared_rules),
    "learnable, shared in part": (linears, partly_shared_rules),
    "no for_target": (linears, lambda: fxtie.Rule("1", "0", weight=Gain(2.0))),
    "bank": (linears, bank_rules),
    "one of one": (linears, lambda: bank_rules(1)),
    "two banks": (linears, two_bank_rules),
    "self-derived": (convs, lambda: fxtie.Rule("1", "1", weight=standardize(), bias=None)),
    "chain": (
        convs,
        lambda: [
            fxtie.Rule("1", "0", weight=chain(rot90(1), scale(0.1))),
            fxtie.Rule("2", "1", weight=chain(flip(-1), ChannelScale())),
        ],
    ),
    "fitted": (
        lambda: nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 5)),
        lambda: fxtie.Rule("1", "0", weight=tile(), bias=tile()),
    ),
    "aliases": (Shared, lambda: fxtie.Rule("last", "embed", weight=square)),
    "alias as source": (Shared, lambda: fxtie.Rule("two", "embed", weight=square)),
    "bfloat16": (
        lambda: linears().bfloat16(),
        lambda: [fxtie.Rule("1", "0", weight=LowRank(2)), *bank_rules_in(torch.bfloat16)],
    ),
    "float64": (lambda: linears().double(), lambda: fxtie.Rule("1", "0", weight=ChannelScale())),
    "tied twice": (
        lambda: fxtie.transform(linears(), fxtie.Rule("1", "0", weight=scale(2))),
        lambda: fxtie.Rule("3", "2", weight=LowRank(1)),
    ),
    "odd names": (
        Odd,
        lambda: [
            fxtie.Rule("re:re:a", fxtie.Bank(2, (4, 4)), mean(), bias=None),
            fxtie.Rule(r"re:b\*\[é", fxtie.Bank(2, (4, 4)), Mix(2), bias=None),
            fxtie.Tie("re:a.bias", "b*[é.bias", neg),
        ],
    ),
}


def bank_rules_in(dtype):
    return [fxtie.Rule("2", fxtie.Bank(2, (4, 4), dtype=dtype), mean(), bias=None)]


@torch.no_grad()
def shake(model, seed):
    """Give every tensor new values, in place; a tensor of two names one."""
    generator = torch.Generator().manual_seed(seed)
    for value in model.state_dict().values():
        new = torch.randn(value.shape, generator=generator).abs() + 0.1
        value.copy_(new if value.is_floating_point() else new * 100)


def example(model):
    parameter = next(model.parameters())
    shape = (2, 4, 5, 5) if parameter.dim() == 4 else (2, parameter.shape[-1])
    return torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(parameter.dtype)


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same_state(found, expected):
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name


def assert_same_tied(again, tied):
    """Same tensors, ties and modules; outputs bit for bit, in both modes."""
    assert_same_state(again.state_dict(), tied.state_dict())
    assert [n for n, _ in again.named_parameters()] == [n for n, _ in tied.named_parameters()]
    found, expected = fxtie.report(again).plan, fxtie.report(tied).plan
    as_names = {(t.target, t.sources) for t in expected.ties}
    assert {(t.target, t.sources) for t in found.ties} == as_names
    assert list(found.modules) == list(expected.modules)
    assert type(again).__name__ == type(tied).__name__
    x = example(tied)
    for train in (False, True):
        outputs = [copy.deepcopy(m).train(train)(x) for m in (again, tied)]
        assert torch.equal(*outputs)
        assert outputs[0].isfinite().all()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tied.safetensors"


def tied_case(name):
    build, rules = CASES[name]
    tied = fxtie.transform(build(), rules())
    shake(tied, 1)
    return build, tied


# --- Round trips ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_round_trip(name, path):
    build, tied = tied_case(name)
    before = snapshot(tied)
    save(tied, path)
    assert_same_state(tied.state_dict(), before)
    again = load(path, build())
    assert_same_tied(again, tied)
    first = container.read(path)[0]
    save(again, path)
    assert container.read(path)[0] == first


@pytest.mark.parametrize("name", ["learnable, shared in part", "two banks", "aliases"])
@pytest.mark.parametrize("through", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_saved_as_well(name, through, path):
    build, tied = tied_case(name)
    save(through(tied), path)
    assert_same_tied(load(path, build()), tied)


def fits(transforms):
    """Not two that take the target's shape."""
    try:
        chain(*transforms)
    except ValueError:
        return False
    return True


TRANSFORMS = st.recursive(
    st.one_of(
        st.sampled_from([square, neg, torch.abs, standardize(), mean()]),
        st.builds(scale, st.floats(-3, 3, allow_nan=False)),
        st.builds(rot90, st.integers(-4, 4)),
        st.builds(flip, st.integers(-4, 3)),
        st.builds(LowRank, st.integers(1, 4)),
        st.builds(ChannelScale, st.integers(-4, 3)),
        st.builds(Gain, st.floats(-3, 3, width=32)),
        st.builds(pad, value=st.floats(-1, 1)),
        st.builds(crop, center=st.booleans()),
        st.builds(resize, st.sampled_from(["nearest", "linear"])),
    ),
    lambda inner: st.lists(inner, min_size=1, max_size=3).filter(fits).map(lambda t: chain(*t)),
    max_leaves=4,
)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(transforms=st.lists(TRANSFORMS, min_size=2, max_size=3), picks=st.data())
def test_round_trip_of_any_transforms(transforms, picks, path):
    rules = [
        fxtie.Tie(
            f"{i}.weight",
            picks.draw(st.sampled_from([f"{j}.weight" for j in range(i)])),
            picks.draw(st.sampled_from(transforms)),
        )
        for i in range(1, 4)
    ]
    tied = fxtie.transform(convs(4), rules)
    shake(tied, 1)
    save(tied, path)
    again = load(path, convs(4))
    assert_same_state(again.state_dict(), tied.state_dict())
    x = example(tied)
    torch.testing.assert_close(again(x), tied(x), rtol=0, atol=0, equal_nan=True)


def test_shared_modules_stay_shared(path):
    _, tied = tied_case("learnable, shared")
    save(tied, path)
    again = load(path, linears())
    (module,) = fxtie.report(again).plan.modules.values()
    assert [step.tie.transform for step in fxtie.report(again).plan.steps] == [module] * 2
    assert sum(name.startswith("ties.") for name, _ in again.named_parameters()) == 2


def test_parameters_shared_between_chains_stay_shared(path):
    _, tied = tied_case("learnable, shared in part")
    save(tied, path)
    again = load(path, linears())
    one, two = again.ties.children()
    for name in ("1.scale", "2.gain", "2.calls"):
        assert dict(one.state_dict(keep_vars=True))[name] is two.state_dict(keep_vars=True)[name]
    assert one.get_parameter("3.B") is not two.get_parameter("3.B")


def test_banks_stay_shared(path):
    _, tied = tied_case("two banks")
    save(tied, path)
    again = load(path, linears())
    (again[0].weight.sum() + again[1].weight.sum() + again[3].weight.sum()).backward()
    assert all(t.grad is not None for t in again.ties.bank_2.templates)


def test_a_tensor_of_two_names_is_written_once(path):
    _, tied = tied_case("aliases")
    save(tied, path)
    with safe_open(path, framework="pt") as file:
        assert set(tied.state_dict()) - set(file.keys()) == {
            "head.weight",
            "two.weight",
            "two.bias",
        }


def test_views_that_overlap_are_written_whole(path):
    class Views(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Linear(4, 4), nn.Linear(4, 4))
            self.register_buffer("all", torch.zeros(6, 2))
            self.register_buffer("part", self.all[1:3])
            self.register_buffer("turned", self.all.t())
            self.register_buffer("empty", torch.zeros(0, 3))
            self.register_buffer("nothing", torch.zeros(0, 3))

        def forward(self, x):
            return self[1](self[0](x)) + self.all.sum() + self.part.sum()

    tied = fxtie.transform(Views(), fxtie.Rule("1", "0"))
    shake(tied, 1)
    save(tied, path)
    assert_same_tied(load(path, Views()), tied)


def test_complex_tensors(path):
    values = torch.randn(4, 4, dtype=torch.complex64)
    tied = buffer_case(values.conj())
    save(tied, path)
    again = load(path, buffered_linears(torch.zeros(4, 4, dtype=torch.complex64)))
    assert torch.equal(again.odd, values.conj())


def test_what_is_shared_with_the_model(path):
    _, tied = tied_case("plain")
    save(tied, path)
    model = linears()
    target = model[2].weight.clone()
    parameters = dict(model.named_parameters())
    again = load(path, model)
    assert all(p is parameters[name] for name, p in again.named_parameters())
    assert torch.equal(model[0].weight, tied[0].weight)
    assert torch.equal(model[2].weight, target)


def test_moved_after_tying(path):
    """A learnable transform is in the dtype in which it was saved, not the one it starts in."""
    model = linears()
    tied = fxtie.transform(model, fxtie.Rule("1", "0", weight=Gain())).bfloat16()
    save(tied, path)
    again = load(path, linears().bfloat16())
    assert_same_tied(again, tied)
    assert next(iter(again.ties.children())).calls.dtype is torch.int64


def test_any_device(device, path):
    for name in ("learnable", "bank", "no for_target"):
        build, tied = tied_case(name)
        for source, target in (("cpu", device), (device, "cpu")):
            save(tied.to(source), path)
            again = load(path, build().to(target))
            assert {p.device.type for p in again.parameters()} == {torch.device(target).type}
            assert_same_tied(again.cpu(), copy.deepcopy(tied).cpu())


def test_compiled(path):
    tied = fxtie.transform(linears(), CASES["plain"][1]())
    save(torch.compile(tied, backend="eager"), path)
    assert_same_tied(load(path, linears()), tied)


def test_training_goes_on_the_same(path):
    build, tied = tied_case("learnable")
    save(tied, path)
    again, before = load(path, build()), snapshot(tied)
    for model in (tied, again):
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
        for _ in range(3):
            optimizer.zero_grad()
            model(example(model)).square().mean().backward()
            optimizer.step()
        assert not torch.equal(model[0].weight, before["0.weight"])
    assert_same_state(again.state_dict(), tied.state_dict())


def test_values_bit_for_bit(path):
    _, tied = tied_case("plain")
    bits = torch.tensor([-(2**31), 2**31 - 1, 1, 0x7FC00001], dtype=torch.int32)  # -0.0, NaNs
    tied[0].bias.data.copy_(bits.view(torch.float32))
    save(tied, path)
    assert torch.equal(load(path, linears())[0].bias.view(torch.int32), bits)


def test_saving_leaves_the_random_state_alone(path):
    _, tied = tied_case("learnable")
    before = torch.get_rng_state()
    save(tied, path)
    assert torch.equal(torch.get_rng_state(), before)


# --- Refused at save --------------------------------------------------------------------------


def refused(tied, path):
    """The message of the refusal, after which the old file is whole and alone."""
    path.write_bytes(b"old")
    with pytest.raises(FileError) as caught:
        save(tied, path)
    assert path.read_bytes() == b"old"
    assert os.listdir(path.parent) == [path.name]
    return str(caught.value)


@pytest.mark.parametrize("transform", [lambda w: w + 1, torch.sigmoid, torch.nn.ReLU()])
def test_transform_without_a_name(transform, path):
    rules = [fxtie.Rule("1", "0", weight=transform, bias=None), fxtie.Rule("2", "0")]
    tied = fxtie.transform(linears(), rules)
    message = refused(tied, path)
    assert "'1.weight'" in message and "@fxtie.register" in message and "check_saveable" in message
    with pytest.raises(FileError, match="no registered name"):
        check_saveable(fxtie.plan(linears(), rules))
    if transform is not torch.sigmoid and not isinstance(transform, nn.Module):
        assert "no registered name" in refused(pickle.loads(pickle.dumps(tied)), path)


def test_nothing_is_lost_by_a_refusal(path):
    """A transform can be given its name afterwards, in the same session."""

    def double(source):
        return source * 2

    tied = fxtie.transform(linears(), fxtie.Rule("1", "0", weight=double))
    assert "no registered name" in refused(tied, path)
    register("tests.files.double")(double)
    save(tied, path)
    assert_same_tied(load(path, linears()), tied)


def test_every_fault_is_told(path):
    rules = [fxtie.Rule(f"{i}", "0", weight=lambda w: w + 1) for i in (1, 2, 3)]
    message = refused(fxtie.transform(linears(), rules), path)
    assert all(f"'{i}.weight'" in message for i in (1, 2, 3))


def test_for_target_that_gives_something_unnamed(path):
    @register("tests.files.Column")
    @dataclass(frozen=True)
    class Column:
        def for_target(self, target):
            return lambda source: source * 2

        def __call__(self, source):
            return source * 2

    tied = fxtie.transform(linears(), fxtie.Rule("1", "0", weight=Column()))
    assert "no registered name" in refused(tied, path)


def test_tensors_that_the_name_does_not_tell_of(path):
    grown = Growing()
    grown.late = nn.Parameter(torch.ones(()))
    tied = fxtie.transform(linears(), fxtie.Rule("1", "0", weight=grown))
    assert "__init__ or for_target" in refused(tied, path)


def buffered_linears(value):
    model = linears()
    model.register_buffer("odd", value)
    return model


def buffer_case(value):
    return fxtie.transform(buffered_linears(value), fxtie.Rule("1", "0"))


@pytest.mark.parametrize(
    "value, why",
    [
        (torch.zeros(2, dtype=torch.complex128), "complex128"),
        (torch.eye(2).to_sparse(), "layout"),
        (torch.zeros(1, device="meta"), "meta"),
        (torch.zeros(1).expand(3), "expanded"),
    ],
)
def test_tensors_that_a_file_can_not_hold(value, why, path):
    message = refused(buffer_case(value), path)
    assert "'odd'" in message and why in message


def test_extra_state(path):
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"a": 1}

        def set_extra_state(self, state):
            raise AssertionError

    tied = fxtie.transform(nn.Sequential(Extra(4, 4), nn.Linear(4, 4)), fxtie.Rule("1", "0"))
    assert "extra state of type dict" in refused(tied, path)


def test_not_a_tied_model(path):
    for save_it in (lambda: save(linears(), path), lambda: check_saveable(linears())):
        with pytest.raises(FxtieError, match="not a tied model"):
            save_it()
    assert not path.exists()


# --- Refused at load --------------------------------------------------------------------------


def assert_refused(path, model, match="can't be loaded"):
    """Loading raises FileError and changes nothing."""
    before = snapshot(model)
    members = [list(module.__dict__) for module in model.modules()]
    with pytest.raises(FileError, match=match) as caught:
        load(path, model)
    assert str(path) in str(caught.value)
    assert_same_state(model.state_dict(), before)
    assert [list(module.__dict__) for module in model.modules()] == members


def test_damaged_files(path):
    """One of each kind: test_container.py tries every byte and every bit."""
    build, tied = tied_case("bank")
    assert_refused(path, build(), "no such file")
    save(tied, path)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for size in (0, 4, 8, header // 2, header, header + 4, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert_refused(path, build(), "not a whole safetensors file")
    for place in (3, whole.index(b"Mix"), whole.index(b"F32"), header + 5, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        assert_refused(path, build())


def tied_linears():
    model = linears()
    model[1].weight = model[0].weight
    return model


def hooked_linears():
    model = linears()
    model[2].register_forward_hook(lambda *args: None)
    return model


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (lambda: linears(2), "not a tensor of the model"),
        (lambda: linears(5), "'4.bias' is not in the file"),
        (lambda: linears(features=5), "'0.bias' has the shape (4,) in the file, (5,)"),
        (lambda: linears().double(), "Bring the model to it with .to(torch.float32)"),
        (lambda: nn.Sequential(*[nn.Linear(4, 4, bias=False)] * 4), "2.bias"),
        (tied_linears, "two tensors in the file and one in the model"),
        (lambda: buffered_linears(torch.zeros(2)), "'odd' is not in the file"),
        (hooked_linears, "hooks"),
    ],
)
def test_wrong_model(model, why, path):
    _, tied = tied_case("plain")
    save(tied, path)
    assert_refused(path, model(), re.escape(why))


@pytest.mark.parametrize("name", ["plain", "bank", "no for_target", "odd names"])
def test_model_on_the_meta_device(name, path):
    """The ties fit there as well, and what is learned goes with the model; the values can't."""
    build, tied = tied_case(name)
    save(tied, path)
    with pytest.raises(FileError, match="is on the meta device and has no data"):
        load(path, build().to("meta"))


def test_model_without_the_aliases_of_the_file(path):
    _, tied = tied_case("aliases")
    save(tied, path)
    model = Shared()
    model.head.weight = nn.Parameter(torch.zeros(4, 4))
    assert_refused(path, model, "'head.weight' is not in the file")


def test_model_that_can_not_take_the_values(path):
    save(buffer_case(torch.zeros(3)), path)
    assert_refused(path, buffered_linears(torch.zeros(1).expand(3)), "expanded")


def test_not_a_model(path):
    with pytest.raises(FileError, match="not dict"):
        load(path, {})


def test_for_target_that_never_ends(path):
    @register("tests.files.Restless")
    class Restless(Gain):
        def for_target(self, target):
            return Restless()

    tied = fxtie.transform(linears(), fxtie.Rule("1", "0", weight=Restless(), bias=None))
    save(tied, path)
    assert_refused(path, linears(), "something new for a target")


def rewrite(path, record):
    """The file with another record, and the sum that goes with it."""
    _, tensors = container.read(path)
    container.write(path, tensors, record)


def test_unknown_transform(path):
    _, tied = tied_case("plain")
    save(tied, path)
    record, _ = container.read(path)
    record["rules"]["rule"][0]["transform"] = "sqare"
    rewrite(path, record)
    assert_refused(path, linears(), r"rule\[0\].transform: .* Closest names: 'square'")


JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 50),
        st.floats(allow_nan=False, allow_infinity=False),
        st.sampled_from(["0.weight", "bank", "square", "LowRank", "ties.bank.templates.0", ""]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["transform", "rank", "shared", "bank", "n", "shape", "source"]),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=5,
)


def places(value):
    """Every place in nested JSON, as the container and the key."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from places(value[key])


@pytest.fixture(scope="module")
def forgeries(tmp_path_factory):
    path, made = tmp_path_factory.mktemp("forgeries") / "tied.safetensors", {}
    for name in ("two banks", "learnable, shared", "learnable, shared in part", "aliases"):
        build, tied = tied_case(name)
        save(tied, path)
        made[name] = build, tied, *container.read(path)
    return path, made


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_forged_records(data, forgeries):
    """A record changed at random, with the right sum: refused, or right by its own lights."""
    path, made = forgeries
    build, tied, record, tensors = made[data.draw(st.sampled_from(sorted(made)))]
    record = copy.deepcopy(record)
    container_of, key = data.draw(st.sampled_from(list(places(record))))
    if data.draw(st.booleans()):
        container_of[key] = data.draw(JSON)
    else:
        del container_of[key]
    # The version and the name of the class are for people.
    record = {"version": 1, **record} if isinstance(record, dict) else record
    container.write(path, tensors, record)
    model = build()
    before = snapshot(model)
    try:
        again = load(path, model)
    except FileError:
        assert_same_state(model.state_dict(), before)
    else:
        values = again.state_dict()
        assert all(torch.equal(values[n], v) for n, v in tied.state_dict().items() if n in values)


def test_nothing_is_unpickled_or_imported(path, monkeypatch):
    _, tied = tied_case("learnable")
    save(tied, path)
    model = linears()

    def refuse(*args, **kwargs):
        raise AssertionError("a file must not lead here")

    for name in ("pickle.load", "pickle.loads", "torch.load", "importlib.import_module"):
        monkeypatch.setattr(name, refuse)
    assert_same_state(load(path, model).state_dict(), tied.state_dict())
