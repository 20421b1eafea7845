"""Commands that cannot be meant: each ends at once, with one message that names what is wrong."""

import pytest

import run_all
from vqa_utils.artifacts.files import write_json
from vqa_utils.artifacts.paths import RunPaths, runs_dir
from vqa_utils.config import to_dict
from vqa_utils.presets import preset

LONG = "r" * 300
DEEP = "d/" * 3000
DIGITS = "9" * 5000

# Words of a command, and what its message names
SETTINGS = [
    ("seed=inf", "seed: "),
    ("seed=1e3", "seed: "),
    ("seed=-1", "found -1"),
    ("seed=4294967296", "4294967296"),
    ("seed=0x10", "'0x10'"),
    (f"seed={DIGITS}", "seed: "),
    ("epochs=nan", "found nan"),
    ("epochs=inf", "found inf"),
    ("epochs=1e999", "found inf"),
    ("epochs=", "found ''"),
    ("epochs", "NAME=VALUE"),
    ("learning_rate=inf", "found inf"),
    ("learning_rate=-0", "learning_rate: "),
    ("learning_rate=nan", "found nan"),
    ("warmup_ratio=nan", "found nan"),
    ("lora_dropout=1", "lora_dropout: "),
    ("lora_r=1000000000", "1000000000"),
    ("lora_alpha=1000000000", "1000000000"),
    ("micro_batch=1000000000", "1000000000"),
    ("accumulation=1000000000", "1000000000"),
    ("score_batch=1000000000", "1000000000"),
    ("n_folds=1000000000", "1000000000"),
    ("image_side=1000000000", "1000000000"),
    ("num_workers=1000000000", "1000000000"),
    ("limit=99999999999999", "99999999999999"),
    ("max_grad_norm=inf", "found inf"),
    ("holdout_fraction=nan", "found nan"),
    ("near_duplicates=11", "found 11"),
    ("max_memory=infGB", "infGB"),
    ("max_memory=1e9GB", "1e9GB"),
    ("report_to=wandbb", "wandbb"),
    ("target_modules=", "target_modules: "),
    ("folds_at_once=9", "folds_at_once: "),
    ("calibrate=maybe", "calibrate: "),
    ("preset=safe", "--preset safe"),
    ("=", "NAME=VALUE"),
    ("", "NAME=VALUE"),
    (f"data={LONG}", "data: "),
    (f"cache_dir={DEEP}", "cache_dir: "),
    (f"extra_train={LONG}", "extra_train: "),
    (f"model={LONG}", "model: "),
]
OPTIONS = [
    (["--limit", "nan"], "'nan'"),
    (["--limit", "1e3"], "'1e3'"),
    (["--limit", "-5"], "found -5"),
    (["--folds", "-1"], "'-1'"),
    (["--folds", "1_0"], "'1_0'"),
    (["--folds", "7"], "found 7"),
    (["--folds", DIGITS], "--folds"),
    (["--only", ""], "found ''"),
    (["--only", "../01_eda"], "'../01_eda'"),
    (["--from", ""], "found ''"),
    (["--preset", ""], "found ''"),
    (["--preset", "saef"], "'saef'"),
    (["--run-id", ""], "found ''"),
    (["--run-id", LONG], LONG),
    (["--run-id", "."], "'.'"),
    (["--run-id", ".locks"], "'.locks'"),
    (["--run-id", "a\nb"], r"'a\nb'"),
    (["--run-id", "{x}"], "'{x}'"),
    (["--resume-from", ""], "--resume-from"),
    (["--resume-from", LONG], "--resume-from"),
    (["--resume", "--run-id", "nothing"], "runs/nothing"),
]
COMMANDS = [
    (["plan", "--preset", "safe", "--set", "micro_batch=100000"], "1,600,000"),
    (["plan", "--model", ""], "--model ''"),
    (["plan", "--t4", "0"], "'0'"),
    (["plan", "--t4", "-1"], "'-1'"),
    (["plan", "--t4", "inf"], "'inf'"),
    (["plan", "--t4", "1000000000"], "'1000000000'"),
    (["status", "--run-id", ".."], "'..'"),
    (["status", "--run-id", "/etc"], "'/etc'"),
    (["status", "--run-id", LONG], LONG),
    (["predict", ""], "DIR"),
    (["predict", LONG], "DIR"),
    (["predict", DEEP], "DIR"),
    (["predict", "/etc/passwd", "--run-id", "there"], "/etc/passwd"),
    (["predict", "/nowhere", "--run-id", ".."], "'..'"),
    (["compare", ".."], "'..'"),
    (["compare", "/etc"], "'/etc'"),
    (["compare", ""], "''"),
    (["compare", LONG], LONG),
    (["compare", "there/fold0"], "'there/fold0'"),
    (["compare", "there", "not-there"], "'not-there'"),
    (["compare", "{x}", "%s"], "'{x}', '%s'"),
    (["compare", "\0"], r"'\x00'"),
    (["blend", "there"], "found 1"),
    (["blend", "there", "there"], "there: "),
    (["blend", "there", "./there"], "'./there'"),
    (["blend", "there", "there/../there"], "'there/../there'"),
    (["blend", "there", "runs", ".", "/etc", ""], "'/etc'"),
    (["blend", "there", LONG], LONG),
    (["blend", "there", "latest"], "there: "),
    (["blend", "there", "there", "--run-id", ""], "found ''"),
    (["blend", "there", "there", "--run-id", "there"], "runs/there"),
    (["sweep", ""], "FILE"),
    (["sweep", LONG], "FILE"),
    (["sweep", "."], "."),
    (["sweep", "/dev/null"], "/dev/null"),
]
ALL = [
    *((["plan", "--set", setting], named) for setting, named in SETTINGS),
    *(([*words, "--dry-run"], named) for words, named in OPTIONS if words[0] != "--resume-from"),
    *((words, named) for words, named in OPTIONS if words[0] == "--resume-from"),
    *COMMANDS,
]


@pytest.fixture
def refusal(monkeypatch, capsys, tmp_path):
    """Runs a command that is refused; returns its message."""
    monkeypatch.setenv("VQA_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setattr("run_all.time.strftime", lambda form: "now")
    write_json(RunPaths("there").config, to_dict(preset("demo")))

    def refuse(words):
        monkeypatch.setattr("sys.argv", ["run_all.py", *words])
        with pytest.raises(SystemExit) as ended:
            run_all.main()
        assert ended.value.code in (1, 2)
        printed = capsys.readouterr()
        return printed.out + printed.err

    return refuse


@pytest.mark.parametrize(("words", "named"), ALL, ids=[" ".join(words)[:40] for words, _ in ALL])
def test_a_command_that_cannot_be_meant_is_refused_at_once(refusal, words, named):
    message = refusal(words)
    assert "error: " in message and "Traceback" not in message
    assert named in message.replace("\n", " ") or named in message
    there = {path.name for path in runs_dir().iterdir()}
    assert there <= {"there", ".locks"}, "nothing was written"


@pytest.mark.parametrize("name", ["there", "there/", "runs/there", "runs/there/"])
def test_a_run_may_be_named_as_a_shell_completes_it(refusal, monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    assert "there: expected each run once" in refusal(["blend", "there", name])


GRID = "[" + ",".join(map(str, range(1000))) + "]"
ALIASES = "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (f"grid: {{seed: {GRID}, lora_r: {GRID}, tta: {GRID}}}", "1,000,000,000"),
        ("also:\n" + "  - {seed: 1}\n" * 1001, "1,001"),
        (f"a: &a [x]\n{ALIASES}grid: *i", "grid: expected settings"),
        (f"a: &a [x]\n{ALIASES}grid: {{seed: *i}}", "b: expected one of"),
        ("grid: {seed: " + "[" * 5000 + "]" * 5000 + "}", "recursion"),
        ("grid: {seed: &x [1, *x]}", "seed: expected a value"),
        (f"grid: {{seed: [{DIGITS}]}}", "digits"),
        (f"grid: {{seed: [0x{DIGITS}]}}", "digits"),
        ("grid: {seed: [1], seed: [2]}", "seed twice"),
        ("grid: {epochs: [.inf, .nan]}", "found nan"),
        ("grid: {seed: [2020-01-01]}", "datetime.date"),
        ("grid: {[1, 2]: [3]}", "unhashable"),
        ('grid: {data: ["\\0"]}', "data: "),
        ("grid: {seed: [!!python/object/apply:os.system ['x']]}", "python/object"),
        ("", "None"),
    ],
)
def test_a_sweep_that_cannot_be_meant_is_refused_at_once(refusal, tmp_path, text, named):
    file = tmp_path / "grid.yaml"
    file.write_text(text)
    message = refusal(["sweep", str(file), "--dry-run"])
    assert "grid.yaml" in message and named in message.replace("\n", " ")
    assert len(message) < 10_000
