"""Parts of a configuration that are chosen by name, and the flags that come with them."""

import dataclasses
import json

import equinox as eqx
import pytest

from umd_eqx.commands.cli import exit_with, main
from umd_eqx.commands.leaves import KINDS, choose, name_of, parse, with_types
from umd_eqx.commands.sample import Sample
from umd_eqx.commands.sampling import sampling_kinds
from umd_eqx.commands.train_tokenizer import train_tokenizer
from umd_eqx.core.errors import BadInput
from umd_eqx.objectives import AbstractObjective, MaskedDenoising, Unified
from umd_eqx.recipes.dump import load
from umd_eqx.recipes.pretrain import PRETRAIN, latent_dit, latent_dit_l2_in256, umd
from umd_eqx.sampling import (
    DDIM,
    SAMPLERS,
    AbstractGrid,
    AbstractSampler,
    Adaptive,
    DPMSolverPP,
    EDMGrid,
    Heun,
    LogSNRGrid,
    ReferenceGrid,
    ShiftedGrid,
    UniformGrid,
)
from umd_eqx.training.optimisers import LARS, OPTIMISERS, AdamW, Muon

SAMPLER = "--eval.generation.sampler"


def chosen(default, *words):
    config, rest, _ = choose(default, words, KINDS)
    return config, rest


def sampler_of(*words, recipe=latent_dit):
    config, rest = chosen(recipe(), *words)
    assert rest == []
    return config.eval["generation"].sampler


def test_nothing_named_is_nothing_changed():
    words = ["--optim.lr", "1", "--run-dir", "muon", "--seed", "3"]
    for name, preset in PRETRAIN.items():
        assert chosen(preset(), *words) == (preset(), words), name


@pytest.mark.parametrize(
    "words",
    [
        (SAMPLER, "heun"),
        (f"{SAMPLER}=heun",),
        (f"{SAMPLER}.name", "heun"),
        (f"{SAMPLER}.name=heun",),
        (SAMPLER, "tsit5", SAMPLER, "heun"),  # the last counts
    ],
)
def test_a_name_puts_another_type_in_the_place_and_keeps_what_both_have(words):
    # ... but for the grid, which was the usual one of the old type and is that of the new.
    assert sampler_of(*words) == Heun(steps=16, head="v", grid=EDMGrid())


def test_a_grid_that_was_chosen_is_kept():
    evaluators = latent_dit().eval
    sampler = DPMSolverPP(steps=16, grid=UniformGrid())
    generation = dataclasses.replace(evaluators["generation"], sampler=sampler)
    config = dataclasses.replace(latent_dit(), eval=evaluators | {"generation": generation})
    assert sampler_of(SAMPLER, "heun", recipe=lambda: config) == Heun(steps=16, grid=UniformGrid())


def test_parts_of_parts_come_after_their_whole_whatever_the_order_of_the_words():
    for words in ((SAMPLER, "heun", f"{SAMPLER}.grid", "shifted"), (f"{SAMPLER}.grid", "shifted", SAMPLER, "heun")):
        assert sampler_of(*words) == Heun(steps=16, head="v", grid=ShiftedGrid())


def test_values_that_belong_to_a_name_are_not_those_of_the_old_type():
    assert sampler_of(SAMPLER, "dopri5") == Adaptive(method="dopri5", steps=16, head="v")
    adaptive = sampler_of(SAMPLER, "tsit5", SAMPLER, "dopri5", SAMPLER, "tsit5")
    assert adaptive == Adaptive(method="tsit5", steps=16, head="v")
    assert sampler_of(SAMPLER, "heun", recipe=latent_dit_l2_in256) == Heun(steps=125)
    # The name of what is there already changes nothing.
    assert sampler_of(SAMPLER, "ddim", recipe=latent_dit_l2_in256) == DDIM(steps=125, eta=1.0)


def test_an_optimiser_keeps_the_schedule():
    recipe = umd().optim
    muon = chosen(umd(), "--optim", "muon")[0].optim
    assert type(muon) is Muon
    shared = [field.name for field in dataclasses.fields(AdamW) if field.name != "layer_decay"]
    assert {name: getattr(muon, name) for name in shared} == {name: getattr(recipe, name) for name in shared}
    lars = chosen(umd(), "--optim", "lars")[0].optim
    assert (lars.steps, lars.warmup, lars.lr_batch_size) == (recipe.steps, recipe.warmup, None)
    # A learning rate for AdamW means nothing to LARS.
    assert (type(lars), lars.lr, lars.weight_decay) == (LARS, 0.1, 0.0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--optim", "muno"), "--optim: there is no 'muno'. Did you mean muon? Choose one of: adamw, muon, lars"),
        (("--optim", "sgd"), "--optim: there is no 'sgd'. Choose one of: adamw, muon, lars"),
        (("--optim",), "--optim: a name is missing. Choose one of: adamw"),
        (("--optim", "--seed", "3"), "--optim: a name is missing. Choose one of: adamw"),
        ((SAMPLER, "huen"), f"{SAMPLER}: there is no 'huen'. Did you mean heun? Choose one of: ddim, euler"),
        ((f"{SAMPLER}.name", "x"), f"{SAMPLER}: there is no 'x'. Choose one of: ddim"),
        ((f"{SAMPLER}.grid=emd",), f"{SAMPLER}.grid: there is no 'emd'. Did you mean edm? Choose one of: reference"),
        ((f"{SAMPLER}.eta", "0"), f"{SAMPLER}.eta: dpmpp has no such setting"),
        ((SAMPLER, "tsit5", f"{SAMPLER}.grid", "edm"), f"{SAMPLER}.grid: tsit5 has no such setting"),
        (
            ("--optim.momentum=0.5",),
            "--optim.momentum: adamw has no such setting. Omit it, or choose a type that has it",
        ),
        (("--optim", "lars", "--optim.beta2", "0.5"), "--optim.beta2: lars has no such setting"),
    ],
)
def test_what_is_wrong_is_one_line(capsys, words, said):
    with pytest.raises(SystemExit) as end:
        main(PRETRAIN, ["latent-dit", *words])
    out, error = capsys.readouterr()
    assert (end.value.code, out) == (2, "")
    assert error.startswith(f"error: {said}")
    assert len(error.splitlines()) == 1


@pytest.fixture
def said(capsys):
    def call(*words, **options) -> str:
        with pytest.raises(SystemExit) as end:
            main(PRETRAIN, words, **options)
        out, error = capsys.readouterr()
        assert end.value.code in (0, None), error
        return out

    return call


def test_the_flags_of_what_was_chosen_are_there_and_shown(said):
    out = said("latent-dit", "--help")
    for flag in ("--optim NAME", f"{SAMPLER} NAME", f"{SAMPLER}.grid NAME", f"{SAMPLER}.max-ratio", "--optim.beta2"):
        assert flag in out
    assert f"{SAMPLER}.eta" not in out
    out = said("latent-dit", SAMPLER, "ddim", "--optim", "muon", "--help")
    assert f"{SAMPLER}.eta FLOAT" in out
    assert "--optim.rms" in out
    assert f"{SAMPLER}.max-ratio" not in out


def test_flags_of_the_new_type_are_set_by_the_same_words(said):
    words = ["--optim", "muon", "--optim.rms", "None", "--optim.lr", "0.02", SAMPLER, "ddim", f"{SAMPLER}.eta", "0.5"]
    words += [f"{SAMPLER}.grid", "edm", f"{SAMPLER}.grid.rho", "3", f"{SAMPLER}.no-clip"]
    config = load(json.loads(said("latent-dit", "--print-config", *words)))
    recipe = latent_dit()
    assert config.eval["generation"].sampler == DDIM(16, 0.5, EDMGrid(rho=3.0), "v", False)
    assert (type(config.optim), config.optim.lr, config.optim.rms) == (Muon, 0.02, None)
    assert (config.model, config.objective, config.data) == (recipe.model, recipe.objective, recipe.data)


def test_a_tokenizer_is_trained_by_another_optimiser_too(capsys):
    with pytest.raises(SystemExit):
        exit_with(train_tokenizer, ["kl", "--optim", "lars", "--print-config"])
    assert type(load(json.loads(capsys.readouterr().out)).optim) is LARS


def sampled(*words):
    kinds = sampling_kinds({})
    return parse(Sample, list(words), kinds, default=Sample(), description="").flags.sampler


@pytest.mark.parametrize(
    ("words", "sampler"),
    [
        ("", DPMSolverPP(32, head="v")),
        ("--steps 8 --head eps --no-clip --grid uniform", DPMSolverPP(8, UniformGrid(), "eps", False)),
        ("--sampler ddim", DDIM(32, 0.0, ReferenceGrid(), "v")),
        ("--sampler ddim --eta 0.5 --grid edm --steps 7", DDIM(7, 0.5, EDMGrid(), "v")),
        ("--sampler.name ddim --eta 1", DDIM(32, 1.0, head="v")),
        ("--sampler heun --steps 9", Heun(9, head="v")),
        ("--sampler heun --grid logsnr --grid.sigma-max 9", Heun(32, LogSNRGrid(sigma_max=9.0), "v")),
        ("--sampler tsit5 --rtol 1e-2 --atol 1e-1 --steps 5", Adaptive("tsit5", 1e-2, 1e-1, 5, "v")),
        ("--sampler dopri5", Adaptive("dopri5", head="v")),
    ],
)
def test_the_flags_of_the_sampling_commands_are_flat(words, sampler):
    assert sampled(*words.split()) == sampler


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--eta 0", "eta: dpmpp has no such setting. Omit it, or choose a type that has it: `sampler=ddim`"),
        ("--rtol 1e-2", "rtol: dpmpp has no such setting. .*`sampler=tsit5`"),
        ("--sampler dopri5 --grid edm", "grid: dopri5 has no such setting"),
        ("--grid edm --grid.sigma-max 9 --grid.base 3", "grid.base: edm has no such setting. .*`grid=shifted`"),
    ],
)
def test_a_flag_of_another_sampler_is_refused(words, said):
    with pytest.raises(BadInput, match=said):
        sampled(*words.split())


class Mine(AbstractGrid):
    """A grid with a field that is also a flag of the command."""

    num: int = eqx.field(static=True, default=3)
    times = None


def test_a_flag_of_the_command_is_not_taken_for_that_of_a_type_which_was_not_chosen():
    @dataclasses.dataclass(frozen=True)
    class Command:
        grid: AbstractGrid = dataclasses.field(default_factory=EDMGrid)
        grid_num: int = 1

    kinds = with_types(KINDS, {"mine": Mine})
    asked = parse(Command, ["--grid-num", "4"], kinds, default=Command(), description="")
    assert (asked.grid, asked.grid_num) == (EDMGrid(), 4)


def test_a_name_is_found_again():
    assert [name_of(make(), SAMPLERS) for make in SAMPLERS.values()] == list(SAMPLERS)
    assert [name_of(make(), OPTIMISERS) for make in OPTIMISERS.values()] == list(OPTIMISERS)
    assert name_of(DDIM(eta=1.0), sampling_kinds({})[AbstractSampler]) == "ddim"
    assert name_of(Mine(), KINDS[AbstractGrid]) == "Mine"


class Needy(AbstractObjective):
    """It has a field without a default."""

    weight: float
    draw = loss = period = validate = None


def test_types_of_a_readers_own_stand_beside_the_others():
    kinds = with_types(KINDS, {"mine": Mine, "masked": MaskedDenoising, "needy": Needy})
    assert kinds[AbstractGrid]["mine"] is Mine
    assert "mine" not in kinds[AbstractSampler]
    assert set(kinds[AbstractObjective]) == {"masked", "needy"}
    assert "mine" not in KINDS[AbstractGrid]
    # Parts that no name is known for have no flag; a part that is declared as a concrete type has none either.
    assert {choice.flag for choice in choose(umd(), [], KINDS)[2]} == {"data.source", "optim"}
    flags = {choice.flag for choice in choose(umd(), [], kinds)[2]}
    assert "objective" in flags
    assert isinstance(umd().objective, Unified)
    with pytest.raises(BadInput, match=r"objective: needy needs weight, which Unified does not have"):
        choose(umd(), ["--objective", "needy"], kinds)


@pytest.mark.parametrize(
    ("types", "said"),
    [
        ({"edm": Mine}, "types: the name 'edm' is already used for EDMGrid"),
        ({"mine": int}, "types: 'mine' is not a dataclass"),
    ],
)
def test_types_that_cannot_be_named_are_refused(types, said):
    with pytest.raises(BadInput, match=said):
        with_types(KINDS, types)
