"""Why errors come, and what to do: a `Cause` for all messages of some files or functions.

Out: `CAUSES`, in the order in which a user meets them, and `TORCH`, for errors of torch.
`generate.py` writes the page of errors by them, and stops at a message that has none.
"""

from __future__ import annotations

from typing import NamedTuple


class Cause(NamedTuple):
    """What several messages have in common.

    Attributes:
        title: its heading.
        where: files, or functions in them, whose messages it explains. The longest name counts.
        why: why they come.
        remedy: what to do.
    """

    title: str
    where: tuple[str, ...]
    why: str
    remedy: str


# What torch says, why, and what to do; … stands for names.
TORCH = (
    (
        "cannot assign 'torch.FloatTensor' as parameter 'weight'",
        "a function of another tensor is set as a weight, without fxtie",
        "`fxtie.Rule` says which function it is",
    ),
    (
        "To express 'weight' as a function of another Tensor, compute the value in the forward() "
        "method",
        "the same, by `register_parameter`",
        "the same",
    ),
    (
        'Missing key(s) in state_dict: "2.weight"',
        "a tied checkpoint lacks what is derived, and the model is plain",
        "load `fxtie.untied_state_dict(tied)`",
    ),
    (
        'Unexpected key(s) in state_dict: "ties.…"',
        "the same, and the rules add tensors",
        "the same",
    ),
    (
        "does not have a parameter, a buffer, or a parametrized element with name 'weight'",
        "`parametrize` of a derived tensor, also by `parametrizations.weight_norm` and its like",
        "parametrize the source, or put it into the transform",
    ),
    (
        "you can only change requires_grad flags of leaf variables",
        "a derived tensor is to be frozen",
        "freeze its sources, or write `T.stop_gradient()`",
    ),
    (
        "Unsupported global: GLOBAL fxtie.tied.path_copy.new_like",
        "`torch.load` of a model that was pickled as a whole",
        "`torch.load(path, weights_only=False)`, as for any model; or `fxtie.save` and "
        "`fxtie.load`",
    ),
    (
        "KeyError: 'weight'",
        "the older `torch.nn.utils.weight_norm` or `spectral_norm` of a derived tensor",
        "`T.weight_norm()` in a `T.chain`, or `materialize`",
    ),
)

CAUSES = (
    Cause(
        "What is no rule",
        ("rules/rule.py", "rules/free.py", "rules/patterns.py:Pattern", "transforms/protocol.py"),
        "A rule, a tie, a bank or a transform is made of something else than it takes. These come "
        "when it is made, without a model.",
        "Write `fxtie.Rule(target, source, weight=transform)`, one or a list of them. Transforms "
        "are called before they are given: `T.rot90(1)`, not `T.rot90`. "
        "[Rules](rules.md) shows each kind.",
    ),
    Cause(
        "Names in braces",
        ("rules/patterns.py", "planning/resolve.py:Resolver.fill_sources"),
        "In the source of a rule, `{0}` stands for what the first wildcard of the target has "
        "matched, and `{0 // 2 * 2}` for arithmetic on it. What stands in braces is never run as "
        "code.",
        "Number the wildcards from 0, or name groups of a `re:` pattern. Where a source would be "
        "before the first layer, let the pattern begin later: `re:layers\\.([1-9]\\d*)`.",
    ),
    Cause(
        "Rules that match nothing",
        ("planning/resolve.py", "planning/names.py:Names._why_missing"),
        "No module and no tensor has such a name, or each that has is left out, is its own source "
        "or is derived already. A rule that would do nothing is an error and never silent.",
        "`print(model)` and `model.named_parameters()` have the names. `*` stays inside of one "
        "part of a name and `**` does not; a regular expression begins with `re:`. To tie a model "
        "twice, give all rules at once.",
    ),
    Cause(
        "Modules of another structure",
        ("planning/resolve.py:Resolver.expand_match",),
        "A rule for a module means all of its tensors, and the source has not all of them.",
        "Tie modules that are built alike; leave parts out by `bias=None` or `exclude=`; or name "
        "single tensors.",
    ),
    Cause(
        "Two rules for one tensor, and cycles",
        (
            "planning/resolve.py:Resolver.add_one",
            "planning/steps.py:Planner.report_cycle",
            "life/convert.py:_Writes",
        ),
        "A tensor can be derived in one way only, from tensors that are stored in the end.",
        "Write `exclude=` in the more general rule, or let the patterns match less.",
    ),
    Cause(
        "Tensors that can't be derived, or read, as they are",
        ("planning/names.py:Slot", "planning/resolve.py:Resolver.slot"),
        "A derived tensor is computed when it is read. What something else has put there would be "
        "lost: a parametrization, hooks, TorchScript, offloading.",
        "Tie first, and do the other thing with the tied model; or put it into the transform.",
    ),
    Cause(
        "Transforms that don't fit",
        (
            "planning/steps.py",
            "planning/resolve.py:Resolver.add_by",
            "transforms/moving.py:transpose.fault_between",
        ),
        "Planning tries each transform out once, on tensors that have shapes and no values "
        "(torch's FakeTensor). What raises there, gives another shape, dtype or device, or writes "
        "to its source, is told with all targets that it is for.",
        "Bring the shape to the target's by `T.tile()`, `T.crop()`, `T.pad()` or `T.resize()`, in "
        "a `T.chain` after your own. Use ops of torch: `.numpy()` and `.data_ptr()` need values.",
    ),
    Cause(
        "Arguments of transforms",
        ("transforms",),
        "A ready-made transform raises `ValueError` if an argument is out of range and `TypeError` "
        "if it is called in another way, at once where it can, else when it meets its target.",
        "`help(T.resize)` has the arguments, and [Transforms](transforms.md) a picture of each.",
    ),
    Cause(
        "Models that can't be tied as they are",
        ("planning/plan.py", "capturing/capture.py:Capture.register_modules"),
        "Rules change Python modules. A compiled model or one of TorchScript has none, and `ties` "
        "is the name under which fxtie registers what rules add.",
        "Tie the Python model first, then compile, script or export the tied one.",
    ),
    Cause(
        "A plan of another model",
        ("planning/names.py:Names.get", "capturing/capture.py:Capture.check_plan"),
        "A plan holds for the model that it was made for, with the shapes that it has then.",
        "Give `fxtie.transform` the rules instead of the plan, or plan again.",
    ),
    Cause(
        "Forwards that can't be captured",
        ("capturing/transform.py", "capturing/capture.py:untied_graphs"),
        "With `strict=True`, a forward that can't be proved safe to capture is an error.",
        "Leave `strict` out: such a forward runs as it is written, and reads right values. "
        "`fxtie.report(tied)` says why for each.",
    ),
    Cause(
        "Derived tensors are computed",
        ("tied/tied_module.py",),
        "A derived tensor has no storage of its own: what would be set, deleted, pruned or "
        "replicated is not there.",
        "Change the sources, put the change into the transform, or make a plain model: "
        "`fxtie.materialize(tied)`.",
    ),
    Cause(
        "What is not a tied model",
        ("tied/path_copy.py:tied_model", "capturing/report.py"),
        "The function looks at what `fxtie.transform` returned.",
        "Pass that model as a whole. The wrapper of `torch.compile` may be around it.",
    ),
    Cause(
        "A tied model that was changed",
        ("tied/derived.py", "tied/path_copy.py", "tied/region.py", "tied/fsdp.py"),
        "Sources are read by their names at each call. One of them is gone or was replaced by "
        "something that does not hold its value; or a module is not any more what its graph was "
        "made for (the warning `fxtie.Outdated`, after which its own forward runs).",
        "Put the source back, or tie the changed model again. Use "
        "`torch.nn.utils.parametrize` where a hook of `torch.nn.utils.prune` would compute a "
        "weight, and `fully_shard` where FullyShardedDataParallel would flatten it.",
    ),
    Cause(
        "Checkpoints with other keys",
        ("tied/tied_module.py:TiedModule.load_state_dict", "life/plain.py:completed"),
        "A tied model's state_dict has what is stored, and under `ties` what the rules add. torch "
        "lists the keys that are missing or unexpected. From a checkpoint of the untied model, "
        "values of derived tensors are dropped, and what the rules add keeps its value.",
        "Load an untied checkpoint with `strict=False` where rules add tensors. Load a tied one "
        "into a model that the same rules tie. [Gotchas](gotchas.md) has the other direction, a "
        "tied checkpoint and a plain model.",
    ),
    Cause(
        "recompute=True",
        ("tied/recompute.py",),
        "With `recompute=True`, derived tensors are computed again in the backward pass. They have "
        "to come out as they did in the forward.",
        "Step, load or change sources after the backward, or leave `recompute` out.",
    ),
    Cause(
        "derive_once",
        (
            "life/derive_once.py",
            "life/once_values.py",
        ),
        "Inside of `fxtie.derive_once` values are computed at entry and gradients reach the "
        "sources at the end. What would make the values stale, or the gradients wrong, is refused.",
        "Step, load, clip and unscale after the block.",
    ),
    Cause(
        "materialize and untied_state_dict",
        ("life/convert.py",),
        "A plain model needs whole tensors, one value each.",
        "Of a sharded model, take `fxtie.untied_state_dict(tied)`.",
    ),
    Cause(
        "fit",
        ("life/fit.py", "life/fit_outputs.py", "life/fit_solvers.py"),
        "`fxtie.fit` changes the sources so that derived tensors come near what the model had, and "
        "needs sources that may change, and batches if it compares outputs.",
        "[A tied model's life](life.md) has an example of each way to fit.",
    ),
    Cause(
        "verify",
        ("life/verify.py", "life/verifying"),
        "`fxtie.verify` runs the tied model beside `torch.func.functional_call`. They differ, or "
        "the inputs are such that equal outputs prove nothing.",
        "Pass the model that was tied, as it was. Where it says that nothing is proved, give other "
        "inputs. If they differ for one model and its tied model, that is a bug of fxtie: please "
        "report it.",
    ),
    Cause(
        "save and load",
        ("life/container.py", "life/record.py", "life/saving.py"),
        "Files hold tensors and names, no code. What has no name can't be saved, and what doesn't "
        "fit the model is not loaded. The model, and an old file, stay as they were.",
        "Call `fxtie.check_saveable(plan)` before the training. Register your own transforms by "
        "`fxtie.register`. Give `load` a model built as the one that was tied.",
    ),
    Cause(
        "Names of transforms",
        ("transforms/registry.py",),
        "Files name transforms and their arguments. A name, an argument or its type is not what "
        "was registered.",
        "Import the module that registers the transform before the file is read. Arguments are "
        "finite numbers, strings, bools, None, tuples of these, or transforms.",
    ),
    Cause(
        "Rule files",
        ("rules/files.py", "rules/reader.py", "rules/writer.py"),
        "A rule file is TOML or JSON of a fixed form. Faults are told with file and line, all of "
        "them at once; of wrong syntax, as Python's readers of TOML and JSON tell it.",
        "[Rules as data](rules.md#rules-as-data) shows the form; editors check it by "
        "`fxtie/rules/rules.schema.json`.",
    ),
    Cause(
        "Models of transformers, accelerate and PEFT",
        ("integrations", "life/plain.py"),
        "A checkpoint of `save_pretrained` is that of the plain class, with `fxtie.json` beside "
        "it. What would lose the ties, or write something else than the plain model, is refused.",
        "[Models of transformers](transformers.md) has the ways that work.",
    ),
    Cause(
        "Looking: diff, picture, suggest",
        ("looking",),
        "What was given has no graph, no ties or no such scheme to look at.",
        "Give `diff` the untied and the tied model, in this order; `picture` a plan, a report or a "
        "tied model. [Seeing](seeing.md) has each.",
    ),
    Cause(
        "Exported programs and passes",
        ("pipelines",),
        "Rules for a program of `torch.export` go by names alone, and derivations are put into its "
        "graph.",
        "Where the program lacks what the rules need, tie the module and export the result.",
    ),
    Cause(
        "Stages of a pipeline",
        ("distributed",),
        "A derived tensor is computed on one stage, from sources that stages store.",
        "Keep the layers of sources on a stage. [Past one machine](distributed.md) has an example.",
    ),
    Cause(
        "The command line",
        ("cli.py",),
        "MODEL is what gives the model, as `package.module:callable`. Exit code 2 is wrong usage, "
        "1 is rules that don't fit.",
        "`fxtie plan --help` has the arguments; `--debug` shows where an error comes from.",
    ),
)


def cause_of(where: str) -> Cause:
    """The cause of the messages of a function.

    Raises:
        LookupError: if no cause is for it.
    """
    found = [
        (len(prefix), cause)
        for cause in CAUSES
        for prefix in cause.where
        if where.startswith(prefix)
    ]
    if not found:
        raise LookupError(f"docs/causes.py has no cause for the messages of {where}.")
    return max(found, key=lambda one: one[0])[1]
