"""A wrong setting is explained in the words of the file: where the key belongs, what is allowed, what there is not."""

import re

import pytest

from common.config import PolicyConfig, RunConfig, SiteConfig, Table, canonical, from_canonical, parse, validate
from common.errors import ConfigError
from tests.common.config.test_config import RUN

PYDANTIC = r"Input should|String should|Extra inputs|Field required|Tuple should|Value error|valid dictionary|pydantic"


def refused(model: type[Table], text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(model, text, "run.toml")
    assert not re.search(PYDANTIC, str(caught.value)), caught.value
    assert str(caught.value).startswith("run.toml: ")
    return str(caught.value).removeprefix("run.toml: ")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        # The nearest name is looked for in the key's own table first.
        (RUN + "[privacy]\ntarget-epsilon = 1\nsampling-rat = 0.1\n", "Did you mean 'sampling-rate'?"),
        (RUN + "[model]\nchanels = [8, 8]\n", "unknown key 'model.chanels'. Did you mean 'channels'?"),
        # A key of another table is led there, and not to the nearest name of this one.
        (RUN + "local-steps = 3\n", "'local-steps' stands in [training]"),
        (RUN + "[preprocessing]\nquorum = 3\n", "'quorum' stands in [federation]"),
        ("rounds = 3\n" + RUN, "unknown key 'rounds'. 'rounds' stands in [federation]"),
        (RUN + "seed = 3\n", "'seed' stands at the top of the file"),
        (RUN + "[augmentation]\nflips = false\n", "'augmentation' stands in [training]"),
        ("learning-rate = 1.0\n" + RUN, "stands in [training] and in [strategy] and in [privacy.adaptive-clipping]"),
        ("learning-rat = 1.0\n" + RUN, "Did you mean 'learning-rate' in [training]?"),
        # What people look for in vain.
        (
            RUN + 'aggregation = "fedprox"\n',
            "This version does not have it: how updates become a model is said in [strategy]",
        ),
        (RUN + "epochs = 3\n", "counted in steps"),
        (RUN + "[privacy]\ntarget-epsilon = 1\nnoise-multiplier = 1.1\n", "follows from target-epsilon"),
        (RUN + "[preprocessing]\nzzz = 3\n", "Known here: spacing-mm, rows, intensity, window, steps."),
    ],
)
def test_unknown_key_is_led_to_where_it_belongs(text: str, says: str) -> None:
    assert says in refused(RunConfig, text)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (RUN + "[privacy]\ntarget_epsilon = 1\n", "target-epsilon"),
        (RUN.replace("patch-size", "patch_size"), "patch-size"),
        (RUN + "round_timeout_s = 3.0\n", "round-timeout-s"),
    ],
)
def test_keys_with_underscores_are_refused_in_a_file(text: str, right: str) -> None:
    assert f"keys are written with hyphens. Write '{right}'" in refused(RunConfig, text)


def test_underscores_are_refused_in_a_policy_and_in_canonical_text_and_are_what_code_writes() -> None:
    """A policy that is taken with a key misspelt would be laxer than the hospital believes."""
    assert "Write 'min-patients'" in refused(PolicyConfig, "min_patients = 100\n")
    assert "Write 'cohort-size'" in refused(SiteConfig, 'name = "north"\ncohort_size = 50\n')
    with pytest.raises(ConfigError, match="hyphens"):
        from_canonical(PolicyConfig, '{"min_patients":100}')
    assert validate(PolicyConfig, {"min_patients": 100}).min_patients == 100


def test_names_that_a_hospital_gives_may_have_underscores() -> None:
    site = parse(SiteConfig, 'name = "north"\n[[data]]\npath = "x"\nlabel-map = { liver_left = "liver" }\n')
    assert site.data[0].label_map == {"liver_left": "liver"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (('"CT"', '"PET"'), "data.modality is \"PET\", must be 'CT', 'MR', 'CR', 'DX', 'MG', 'US' or 'photo'"),
        (("rounds = 3", 'rounds = "three"'), 'federation.rounds is "three", must be a whole number'),
        (("rounds = 3", "rounds = 0"), "federation.rounds is 0, must be at least 1"),
        (("rounds = 3", "rounds = 2.5"), "federation.rounds is 2.5, must be a whole number"),
        (("[training]", "[training]\nlearning-rate = -1"), "training.learning-rate is -1, must be above 0"),
        (("[training]", "[training]\nmomentum = 1"), "training.momentum is 1, must be below 1"),
        (("[training]", "[training]\nforeground-fraction = 2"), "is 2, must be at most 1"),
        (("[training]", "[training]\naugmentation = 3"), "training.augmentation is 3, must be a table"),
        (("[training]", "[training]\nlearning-rate = nan"), "must be a finite number"),
        (('classes = ["lesion"]', "classes = []"), "data.classes is [], must be 1 entry or more"),
        (('classes = ["lesion"]', 'classes = "lesion"'), 'must be a list in brackets, such as ["lesion"]'),
        (("patch-size = [64, 64]", "patch-size = 32"), "must be a list in brackets, such as [32]"),
        (('"CT"', '"ct"'), "Did you mean 'CT'?"),
        (
            ('classes = ["lesion"]', 'classes = ["Lesion 1"]'),
            'data.classes.0 is "Lesion 1", must be small letters, digits and hyphens, such as lesion-1',
        ),
        (('"liver"', "3"), "name is 3, must be text in quotes"),
        (('name = "liver"\n', ""), "name is not there, and has no default"),
        (('modality = "CT"', ""), 'data.modality is not there, and has no default. Write one of "CT", "MR"'),
        (("[data]", "deterministic = 3\n[data]"), "deterministic is 3, must be true or false"),
    ],
)
def test_wrong_value_is_told_with_what_is_allowed(change: tuple[str, str], says: str) -> None:
    text = RUN.replace(*change)
    assert text != RUN
    assert says in refused(RunConfig, text)


def test_a_list_with_a_wrong_entry_is_not_called_too_short_as_well() -> None:
    said = refused(RunConfig, RUN.replace('classes = ["lesion"]', 'classes = ["Lesion 1"]'))
    assert said.count("data.classes") == 1
    assert "entry or more" not in said


def test_a_question_ends_without_a_full_stop() -> None:
    assert refused(RunConfig, RUN.replace('"CT"', '"ct"')).endswith("Did you mean 'CT'?")


def test_what_a_choice_does_not_offer_is_said_to_be_all_there_is() -> None:
    said = refused(RunConfig, RUN + '[model]\narchitecture = "vgg"\n')
    assert "must be 'unet', 'plain-unet'," in said
    assert "this version has no other" in said


def test_a_misspelt_kind_or_choice_is_told_the_nearest() -> None:
    for lines, meant in (
        ('[model]\narchitecture = "attention_unet"\n', "attention-unet"),
        ('[task]\n[task.loss]\nkind = "tverksy"\n', "tversky"),
        ('[preprocessing]\nintensity = "zsocre"\n', "zscore"),
    ):
        assert f"Did you mean '{meant}'?" in refused(RunConfig, "format = 2\n" + RUN + lines)


def test_a_key_of_another_kind_says_whose_it_is() -> None:
    said = refused(RunConfig, RUN + '[model]\narchitecture = "attention-unet"\nfilters = 8\n')
    assert "unknown key 'model.filters'. It is a key of plain-unet and resnet; attention-unet has " in said
    said = refused(RunConfig, "format = 2\n" + RUN + '[task.loss]\nkind = "tversky"\nclass-weights = [1.0, 1.0]\n')
    assert "unknown key 'task.loss.class-weights'. It is a key of dice-ce and focal; tversky has " in said


STEPS = "format = 2\n" + RUN + "[preprocessing]\n"


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ('steps = [{ kind = "gausian" }]', 'steps.0.kind is "gausian", must be '),
        ('steps = [{ kind = "gausian" }]', "Did you mean 'gaussian'?"),
        ('steps = ["clahe"]', 'steps.0 is "clahe", must be a table such as { kind = "clahe" }'),
        ("steps = [{ sigma = 1.0 }]", "steps.0.kind is not there. Write one of "),
        ('steps = [{ kind = "clahe" }, { kind = "clahe", clip-limt = 0.1 }]', "Did you mean 'clip-limit'?"),
        ('steps = [{ kind = "clahe", clip = 0.1 }]', "'preprocessing.steps.0.clip'. Did you mean 'clip-limit'?"),
        ('[preprocessing.steps]\nkind = "clahe"', "must be a list of tables: each begins with its name in double"),
        (
            'steps = [{ kind = "median" }, { kind = "gaussian", sigma = "0.8" }]',
            'preprocessing.steps.1.sigma is "0.8", must be a number, without quotes',
        ),
        ('steps = [{ kind = "clahe", sigma = 1.0 }]', "'preprocessing.steps.0.sigma'. It is a key of gaussian"),
        ('steps = [{ kind = "clahe", clip_limit = 0.1 }]', "keys are written with hyphens. Write 'clip-limit'"),
        ('[[preprocessing.steps]]\nkind = "clahe"\nclip-limit = 2', "steps.0.clip-limit is 2, must be at most 1"),
        ('steps = [{ kind = "clahe" }, { kind = "gaussian" }]', "Write gaussian first"),
        ('intensity = "zscore"\nsteps = [{ kind = "clahe" }]', "clahe needs intensities on [0, 1]"),
        ("steps = [" + '{ kind = "clahe" }, ' * 21 + "]", "must be 20 entries or fewer"),
        ('intensity = "window"\nwindow = "lungs"', "there is no window 'lungs'"),
        ('intensity = "window"\nwindow = "lungs"', "Did you mean 'lung'?"),
        ('window = "lung"', "goes with intensity = 'window'"),
    ],
)
def test_a_step_that_is_not_there_or_cannot_be_is_refused_when_the_run_is_read(lines: str, says: str) -> None:
    assert says in refused(RunConfig, STEPS + lines + "\n")


def test_a_run_of_the_first_format_has_no_steps() -> None:
    lines = '[[preprocessing.steps]]\nkind = "clahe"\n'
    assert "preprocessing.steps is a key of format 2" in refused(RunConfig, RUN + lines)


def test_a_windows_name_stands_for_its_two_values() -> None:
    named, written = (
        parse(RunConfig, f'{STEPS}intensity = "window"\nwindow = {window}\n') for window in ('"lung"', "[-1350, 150]")
    )
    assert canonical(named) == canonical(written)  # so a hospital's older version reads it, too


def test_a_loss_that_stands_in_the_wrong_table_is_told_the_right_one() -> None:
    for key, home in (("loss", "[task]"), ("gamma", "[task.loss]")):
        said = refused(RunConfig, RUN.replace("[training]\n", f"[training]\n{key} = 1.0\n"))
        assert f"{key!r} stands in {home}" in said


def test_hours_and_digests_are_asked_for_by_their_form() -> None:
    assert 'hours is "8 to 5", must be hours such as 20:00-06:00' in refused(PolicyConfig, 'hours = "8 to 5"\n')
    assert "64 hexadecimal digits" in refused(RunConfig, RUN + '[initial]\nsha256 = "abc"\n')


def test_every_fault_is_told_at_once_and_a_long_value_is_cut() -> None:
    said = refused(RunConfig, RUN.replace("rounds = 3", "rounds = 0\nquorum = 0") + f'[model]\nnorm = "{"x" * 500}"\n')
    assert "rounds is 0" in said
    assert "quorum is 0" in said
    assert len(said) < 400
