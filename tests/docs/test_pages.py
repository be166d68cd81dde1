"""The test of the snippets fails where it should: pages that are wrong, one fault each."""

from pathlib import Path

import pytest

from tests.docs.pages import blocks_of, commands_of, matches
from tests.docs.running import PageRun

GENERATE = """-H 'Content-Type: application/json' \\
    -d '{"prompt": "Hello", "max_tokens": 2, "resumable": true}'"""


def page(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "page.md"
    path.write_text(text, encoding="utf-8")
    return path


GOOD = f"""
# A page

<!-- test: starts-server keep -->
```bash
penstock serve --engine mock --mock-interval 0.01 --port 8000
```

```console
$ curl -sN http://127.0.0.1:8000/generate -D head {GENERATE}
id: ...0
data: {{"token":"...

...
data: {{"token":"","index":2,"finished":true,...}}
$ grep -i x-stream-id head
x-stream-id: ...
```

```console
$ curl -s -o /dev/null -w '%{{http_code}}' 'http://127.0.0.1:8000/streams/STREAM_ID?after=2'
204
```

- In a list:

  ```python
  from penstock import Client

  stream = Client("http://127.0.0.1:8000").stream("Hello", max_tokens=3)
  ```

  <!-- test: continues -->
  ```python
  print(len(list(stream)))
  ```

  <!-- test: output -->
  ```text
  3
  ```

<!-- test: skip reason=needs
a GPU -->
```bash
exit 1
```

<!-- test: flags reason=needs a GPU -->
```bash
pip install no-such-package-anywhere
penstock serve --engine vllm --model owner/repo \\
    --engine-arg dtype=float32
```

```bash
penstock key alice >> keys.toml
```

<!-- test: starts-server -->
```bash
export PENSTOCK_API_KEY=KEY
penstock serve --engine mock --keys keys.toml
make serve ARGS="--engine mock --slots 2"
```

```js
const answer = await fetch("http://127.0.0.1:8000/health/live");
console.log(answer.status);
```

<!-- test: output -->
```text
200
```

```toml
slots = 4
[engine.llamacpp]
n_ctx = 1024
```

<!-- test: keys -->
```toml
[keys.alice]
hash = "sha256:..."
```

<!-- test: file body.json -->
```json
{{"prompt": "Hello", "stream": false}}
```

```bash
grep -q Hello body.json && test -e deploy/prometheus/prometheus.yml && test -e cert.pem
```
"""


def test_a_page_that_follows_the_rules_passes(run: PageRun, tmp_path: Path) -> None:
    blocks = blocks_of(page(tmp_path, GOOD))
    assert run.all(blocks) == []
    assert [block.actions["skip"] for block in blocks if not block.runs] == ["needs a GPU"]


WRONG = {
    "an indented block": ("    ls\n", "fence it"),
    "a language that nobody runs": ("```ruby\nputs 1\n```\n", "'ruby' is not run"),
    "text without a marker": ("```text\n3\n```\n", "needs <!-- test: output -->"),
    "a server without a marker": ("```bash\npenstock serve\n```\n", "never ends"),
    "a command that fails": ("```bash\nfalse\ntrue\n```\n", "exit code 1"),
    "a request that is refused": (
        "```bash\ncurl -s http://127.0.0.1:8000/streams/none\n```\n",
        "exit code 22",
    ),
    "python that raises": ("```python\n1 / 0\n```\n", "ZeroDivisionError"),
    "another output": ("```console\n$ echo 1\n2\n```\n", "really it is:\n1"),
    "a setting that does not exist": ("```toml\nslotz = 1\n```\n", "Did you mean slots?"),
    "broken JSON": ("```json\n{,}\n```\n", "Expecting"),
    "a stream id that nobody printed": ("```bash\necho STREAM_ID :8000\n```\n", "STREAM_ID"),
    "a flag that does not exist": (
        "<!-- test: flags reason=of a GPU -->\n```bash\npenstock serve --slotz 1\n```\n",
        "--slotz",
    ),
    "a value that is not valid": (
        "<!-- test: starts-server -->\n```bash\npenstock serve --slots -1\n```\n",
        "'slots' is not valid",
    ),
    "a server that cannot start": (
        "<!-- test: starts-server -->\n```bash\npenstock serve --model no.gguf\n```\n",
        "did not start",
    ),
}


@pytest.mark.parametrize(("text", "said"), WRONG.values(), ids=list(WRONG))
def test_a_page_that_is_wrong_fails(run: PageRun, tmp_path: Path, text: str, said: str) -> None:
    (wrong,) = run.all(blocks_of(page(tmp_path, text)))
    assert said in wrong


@pytest.mark.parametrize(
    "marker",
    [
        "<!-- test: skip -->",
        "<!-- test: skip reason= -->",
        "<!-- test: jump reason=why -->",
        "<!-- test: output keep -->",
        "<!-- test: -->",
        "<!-- test: keys -->",
        "<!-- test: file x -->\n\nA paragraph.",
    ],
)
def test_a_marker_that_is_not_understood_fails(tmp_path: Path, marker: str) -> None:
    with pytest.raises(ValueError, match=r"page\.md"):
        blocks_of(page(tmp_path, f"{marker}\n```bash\ntrue\n```\n"))


def test_flags_are_found_in_prose_and_over_lines(tmp_path: Path) -> None:
    text = (
        "Say `penstock key --admin` or\n\n    penstock serve --slots 1 \\\n     --port 2  # --no\n"
    )
    found = [(command, flags) for _, command, flags in commands_of(page(tmp_path, text))]
    assert found == [("key", ["--admin"]), ("serve", ["--slots", "--port"])]


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [
        ("a\n...\nb", "a\n1\n2\nb\n", True),
        ("{...}", "{1}", True),
        ("a", "a  \n", True),
        ("a\n...\nb", "a\nc", False),
        ("a.b", "axb", False),
    ],
)
def test_three_dots_stand_for_anything(expected: str, printed: str, same: bool) -> None:
    assert matches(expected, printed) is same
