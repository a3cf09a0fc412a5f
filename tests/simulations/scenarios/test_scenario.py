"""A scenario file becomes site homes that differ from a hospital's only in where they lie."""

import re
from pathlib import Path

import pytest

from common.config import SiteConfig, SourceConfig, load
from common.errors import ConfigError
from server.commands.template import TEMPLATE
from simulations.scenarios.homes import make_site
from simulations.scenarios.scenario import (
    SHIPPED,
    ScenarioConfig,
    load_scenario,
    prepare,
    published,
    shipped,
)
from tests.simulations.tiny import RUN_TOML, tiny_site

NAMES = sorted(path.stem for path in SHIPPED.glob("*.toml"))


def a_scenario(folder: Path, sites: str) -> str:
    path = folder / "mine.toml"
    path.write_text(f'title = "Mine"\n{RUN_TOML.replace("[run.", "[run.")}\n{sites}')
    return str(path)


def test_shipped_scenarios_are_valid_and_titled() -> None:
    scenarios = shipped()
    assert [one.name for one in scenarios] == NAMES
    assert {"hippocampus", "phantoms", "vessels"} <= set(NAMES)
    assert all(one.config.title for one in scenarios)
    sites = {one.name: len(one.config.site_names) for one in scenarios}
    public = {"fed-ixi": 3, "fed-kits19": 6, "fed-isic2019": 6, "fets2022": 8, "tcga-lgg": 4}
    assert sites == {**dict.fromkeys(NAMES, 3), "unlike": 9, "unlike-alike": 9, **public}
    assert all(one.config.run.name == one.name for one in scenarios)


def test_a_run_in_place_of_a_scenario_is_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(TEMPLATE)
    with pytest.raises(ConfigError, match=r"this is a run\.toml\. A scenario holds a run below") as refused:
        load_scenario(str(path))
    assert len(str(refused.value)) < 300


def test_relative_paths_start_from_the_data_folder(tmp_path: Path) -> None:
    for name in ("north", "south"):
        tiny_site(tmp_path / "images" / name, name)
    tables = (
        '[[sites]]\nname = "north"\ndata = [{path = "north"}]\n[[sites]]\nname = "south"\ndata = [{path = "south"}]'
    )
    scenario = load_scenario(a_scenario(tmp_path, tables))
    sites = prepare(scenario, tmp_path / "out", data=tmp_path / "images")
    assert [site.cohort(scenario.config.run).size for site in sites] == [5, 5]
    assert sites[0].config.data[0].path == str(tmp_path / "images" / "north")


def test_partition_gives_every_patient_to_one_site(tmp_path: Path) -> None:
    tiny_site(tmp_path / "images", "all", patients=11)
    tables = '[partition]\nsites = ["x", "y", "z"]\n[partition.source]\npath = "images"\nkind = "images"'
    scenario = load_scenario(a_scenario(tmp_path, tables))
    sites = prepare(scenario, tmp_path / "out")
    shares = [set(site.config.data[0].patients) for site in sites]
    assert sorted(map(len, shares)) == [3, 4, 4]
    assert len(set.union(*shares)) == 11
    assert sum(site.cohort(scenario.config.run).size for site in sites) == 11


PARTITION = '[partition]\nsites = ["x", "y"]\nseed = {}\npublished = {}\n[partition.source]\npath = "images"\n'


def test_published_patients_go_to_no_site(tmp_path: Path) -> None:
    tiny_site(tmp_path / "images", "all", patients=11)
    scenario = load_scenario(a_scenario(tmp_path, PARTITION.format(0, 4)))
    sites = prepare(scenario, tmp_path / "out")
    kept = published(scenario)
    assert kept is not None
    assert len(set(kept.patients)) == 4
    shares = [set(site.config.data[0].patients) for site in sites]
    assert sorted(map(len, shares)) == [3, 4]
    assert len(set.union(set(kept.patients), *shares)) == 11
    assert published(scenario) == kept
    home = make_site(tmp_path / "public", SiteConfig(name="public", data=(kept,)))
    assert home.cohort(scenario.config.run).size == 4


def test_which_patients_are_published_follows_from_the_partitions_seed(tmp_path: Path) -> None:
    tiny_site(tmp_path / "images", "all", patients=11)
    drawn = []
    for seed, count in ((0, 4), (1, 4), (0, 5)):
        kept = published(load_scenario(a_scenario(tmp_path, PARTITION.format(seed, count))))
        assert kept is not None
        drawn.append(set(kept.patients))
    assert drawn[0] != drawn[1]
    assert drawn[0] < drawn[2], "more of them are the same and some"


def test_archive_without_published_part_is_shared_out_whole(tmp_path: Path) -> None:
    tiny_site(tmp_path / "images", "all", patients=6)
    scenario = load_scenario(a_scenario(tmp_path, PARTITION.format(0, 0)))
    assert published(scenario) is None
    assert sum(len(site.config.data[0].patients) for site in prepare(scenario, tmp_path / "out")) == 6


def test_archive_that_is_published_whole_leaves_no_site_and_is_an_error(tmp_path: Path) -> None:
    tiny_site(tmp_path / "images", "all", patients=3)
    with pytest.raises(ConfigError, match="too few for 2 sites"):
        prepare(load_scenario(a_scenario(tmp_path, PARTITION.format(0, 3))), tmp_path / "out")


def test_more_sites_than_patients_is_an_error(tmp_path: Path) -> None:
    tiny_site(tmp_path, "all", patients=2)
    tables = '[partition]\nsites = ["x", "y", "z"]\n[partition.source]\npath = "."\nkind = "images"'
    with pytest.raises(ConfigError, match="2 patients, too few for 3 sites"):
        prepare(load_scenario(a_scenario(tmp_path, tables)), tmp_path / "out")


def test_phantom_hospitals_are_generated_once(tmp_path: Path) -> None:
    tables = '[phantoms]\nscanners = ["a", "b"]\npatients = 2\nslices = 3\nrows = 32'
    scenario = load_scenario(a_scenario(tmp_path, tables))
    told: list[tuple[int, int]] = []
    sites = prepare(scenario, tmp_path / "out", progress=lambda done, total: told.append((done, total)))
    assert [site.config.name for site in sites] == ["a", "b"]
    assert [site.config.cohort_size for site in sites] == [2, 2]
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "data").rglob("*.dcm")}
    assert written
    prepare(scenario, tmp_path / "out")
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_site_home_says_exactly_what_the_scenario_said(tmp_path: Path) -> None:
    source = SourceConfig(
        path='/with "quotes" and \\ and ü',
        csv="s.csv",
        where={"site": "dr ive", "a.b": "1"},
        label_map={"1": "disc"},
        patient_pattern=r"(Image_\d+)",
        patients=("p 1", "p2"),
    )
    config = SiteConfig(name="north", data=(source, SourceConfig(path="x")), cohort_size=20)
    site = make_site(tmp_path, config)
    assert load(SiteConfig, site.home / "site.toml") == config == site.config


def test_scenario_needs_exactly_one_kind_of_sites(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exactly one of"):
        load_scenario(a_scenario(tmp_path, ""))
    with pytest.raises(ConfigError, match="exactly one of"):
        load_scenario(a_scenario(tmp_path, '[phantoms]\n[[sites]]\nname = "a"'))


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ('[phantoms]\nscanners = ["a", "q"]', "unknown scanners ['q']"),
        ("[phantoms]\npatiens = 3", "Did you mean 'patients'?"),
        ("[phantoms]\nseed = -1", "phantoms.seed is -1, must be at least 0"),
        ('[phantoms]\n[pretraining]\nimages = "retinas"\nseed = -1', "pretraining.seed is -1, must be at least 0"),
        ('[phantoms]\nscanners = ["a"]', "1 sites cannot reach federation.quorum 2"),
        ('[[sites]]\nname = "a"\n[[sites]]\nname = "a"', "site names must be distinct"),
        ('[phantoms]\n[pretraining]\nimages = "teapots"', "'hippocampi', 'mammograms' or 'retinas'"),
        ('[phantoms]\n[pretraining]\nimages = "retinas"\npatients = 0', "pretraining.patients"),
        ("[phantoms]\n[compare]\nepsilons = [0.0]", "compare.epsilons"),
        ("[phantoms]\n[compare]\nepsilons = [1.0, 2.0]\nlearning-rates = [0.1]", "one entry for each of epsilons"),
    ],
)
def test_wrong_scenario_is_explained(tmp_path: Path, tables: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_scenario(a_scenario(tmp_path, tables))


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=", ".join(NAMES)):
        load_scenario("vesels")


def test_missing_images_say_how_to_name_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WARDROUND_DATA", raising=False)
    with pytest.raises(ConfigError, match="--data"):
        prepare(load_scenario("vessels"), tmp_path)


def test_data_variable_names_the_folder_of_all_scenarios(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_site(tmp_path / "data" / "mine" / "x", "x")
    monkeypatch.setenv("WARDROUND_DATA", str(tmp_path / "data"))
    tables = '[[sites]]\nname = "x"\ndata = [{path = "x"}]\n[[sites]]\nname = "y"\ndata = [{path = "x"}]'
    sites = prepare(load_scenario(a_scenario(tmp_path, tables)), tmp_path / "out")
    assert sites[0].config.data[0].path == str(tmp_path / "data" / "mine" / "x")


def test_scenario_may_use_the_images_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_site(tmp_path / "data" / "discs" / "x", "x")
    monkeypatch.setenv("WARDROUND_DATA", str(tmp_path / "data"))
    tables = '[[sites]]\nname = "x"\ndata = [{path = "x"}]\n[[sites]]\nname = "y"\ndata = [{path = "x"}]'
    path = Path(a_scenario(tmp_path, tables))
    path.write_text(f'images = "discs"\n{path.read_text()}')
    sites = prepare(load_scenario(str(path)), tmp_path / "out")
    assert sites[0].config.data[0].path == str(tmp_path / "data" / "discs" / "x")


def test_real_vessels_are_three_sites_and_two_eyes_one_patient(data: Path, tmp_path: Path) -> None:
    scenario = load_scenario("vessels")
    sites = prepare(scenario, tmp_path, data=data / "vessels")
    from client.data.read.sources import list_patients  # noqa: PLC0415 - only where the images are

    counts = {site.config.name: len(list_patients(site.config.data[0], site.home)) for site in sites}
    assert counts == {"drive": 20, "chasedb1": 10, "hrf": 24}


def test_real_hippocampus_is_shared_out_evenly(data: Path, tmp_path: Path) -> None:
    sites = prepare(load_scenario("hippocampus"), tmp_path, data=data / "hippocampus")
    assert [len(site.config.data[0].patients) for site in sites] == [44, 43, 43]


def test_scenario_schema_refuses_unknown_tables() -> None:
    assert ScenarioConfig.model_config["extra"] == "forbid"


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (f'{PARTITION.format(0, 4)}[pretraining]\nimages = "retinas"\n', "published-rounds and partition.published"),
        (f'{PARTITION.format(0, 0)}[pretraining]\nimages = "retinas"\npublished-rounds = 1\n', "go together"),
        (f"{PARTITION.format(0, 0)}[compare]\nepsilons = [1.0]\n", "needs a table"),
        (f"{PARTITION.format(0, 0)}[compare]\nlearning-rates = [1.0]\n", "one entry for each of epsilons"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(tmp_path: Path, tables: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_scenario(a_scenario(tmp_path, tables))
