"""The page, of gradio: nothing on it comes from outside, and nothing is reported to anybody."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from vitbase.errors import ConfigError, VitbaseError
from vitbase.evaluation.report.markup import Markup, tag
from vitbase.runs.checkpoints import find_run_folder, is_own_weights
from vitbase.shipping.showing.seen import TOP, Seen, Viewer

_FONTS = ("system-ui", "-apple-system", "Segoe UI", "sans-serif")
_MONO = ("ui-monospace", "monospace")
_ROLLOUT, _LAYER, _IMAGE = "all layers (rollout)", "one layer", "the image alone"
_ALL_HEADS = "mean of all"
_LAYERS = {
    _ROLLOUT: "How much of each patch arrives in what the head reads, through all layers.",
    _LAYER: "What one layer attends to.",
    _IMAGE: "What the model sees: resized and cropped.",
}


def check_gradio() -> None:
    """Raise a ConfigError saying what to install, if there is no gradio."""
    try:
        import gradio  # noqa: F401
    except ImportError:
        raise ConfigError("The demo needs gradio: pip install 'vitbase[demo]'.") from None


def build_page(viewer: Viewer, examples: Sequence[Path]) -> Any:
    """Return the page of a model, as gradio's Blocks."""
    import gradio as gr

    spec = viewer.loaded.spec

    def see(path: str | None, shown: str, layer: float, head: str) -> tuple[Any, ...]:
        if path is None:  # taken away; what was wrong with the last one stays to be read
            return gr.skip(), None, None, None, gr.skip()
        try:
            seen = viewer.look_at(Path(path))
        except VitbaseError as error:
            return None, None, None, None, gr.update(value=_problem(str(error)), visible=True)
        hidden = gr.update(value="", visible=False)
        return gr.skip(), seen, _named(seen), draw(seen, shown, layer, head), hidden

    def draw(seen: Seen | None, shown: str, layer: float, head: str) -> Any:
        if seen is None:
            return None
        if shown == _IMAGE:
            return seen.plain()
        number = None if head == _ALL_HEADS else int(head)
        return seen.overlay(None if shown == _ROLLOUT else int(layer), number)

    def choose(shown: str) -> tuple[Any, Any, Any]:
        visible = shown == _LAYER
        return (
            gr.update(visible=visible and spec.depth > 1),
            gr.update(visible=visible),
            gr.update(info=_LAYERS[shown]),
        )

    with gr.Blocks(title=f"{spec.name} · vitbase", analytics_enabled=False) as page:
        state = gr.State(None)
        gr.HTML(_heading(viewer), elem_id="title")
        with gr.Row(equal_height=False):
            with gr.Column(min_width=300):
                picture = gr.Image(
                    type="filepath",
                    image_mode=None,
                    sources=["upload", "clipboard", "webcam"],
                    label="Image",
                    height=380,
                    elem_id="picture",
                    buttons=[],
                )
                # Whether it is an image, the model's own reader says. A class of our own would do
                # it, too, but gradio writes a file beside the source for each.
                picture.preprocess = _path_of
                problem = gr.HTML("", visible=False, elem_id="problem")
            with gr.Column(min_width=300):
                result = gr.Label(label="What it is", num_top_classes=TOP, elem_id="result")
                shown = gr.Radio(
                    [*_LAYERS],
                    value=_ROLLOUT,
                    label="Attention of",
                    info=_LAYERS[_ROLLOUT],
                    elem_id="shown",
                )
                layer = gr.Slider(
                    1,
                    max(spec.depth, 2),
                    value=spec.depth,
                    step=1,
                    label="Layer",
                    visible=False,
                    elem_id="layer",
                )
                head = gr.Dropdown(
                    [_ALL_HEADS, *map(str, range(1, spec.num_heads + 1))],
                    value=_ALL_HEADS,
                    label="Head",
                    visible=False,
                    elem_id="head",
                )
            with gr.Column(min_width=300):
                over = gr.Image(
                    label="Where the model looks",
                    interactive=False,
                    height=380,
                    elem_id="overlay",
                    format="png",
                    buttons=["download", "fullscreen"],
                )
        how = [shown, layer, head]
        outputs = [picture, state, result, over, problem]
        picture.change(
            see, [picture, *how], outputs, api_visibility="private", show_progress="minimal"
        )
        for part in how:
            part.change(draw, [state, *how], over, api_visibility="private", show_progress="hidden")
        shown.change(choose, shown, [layer, head, shown], api_visibility="private", queue=False)
        if examples:
            gr.Examples(
                [[str(path)] for path in examples],
                picture,
                label="Images of the run's evaluation",
                examples_per_page=len(examples),
                elem_id="examples",
                cache_examples=False,
                api_visibility="private",
            )
    return page


def _path_of(payload: Any) -> str | None:
    """Return the file that was sent, as it is."""
    return None if payload is None else payload.path


def style() -> str:
    """Return what the page adds to gradio's own style."""
    return (files("vitbase.shipping.showing") / "page.css").read_text(encoding="utf-8")


def theme() -> Any:
    """Return gradio's theme with the fonts that a system has: others would come from the net."""
    import gradio as gr

    return gr.themes.Soft(primary_hue="blue", neutral_hue="slate", font=_FONTS, font_mono=_MONO)


def _heading(viewer: Viewer) -> Markup:
    loaded = viewer.loaded
    spec, preprocess = loaded.spec, loaded.preprocess
    colours = "grey" if preprocess.channels == 1 else "RGB"
    layers = "1 layer" if spec.depth == 1 else f"{spec.depth} layers"
    facts = (
        f"{spec.name}: {spec.num_classes:,} classes, {colours} images of {preprocess.height}"
        f"x{preprocess.width} pixels, {layers} of {spec.num_heads} heads"
    )
    path = loaded.path
    name, of = (path.stem, "")
    run = find_run_folder(path) if is_own_weights(path) else None
    if run is not None:
        name, of = run.resolve().name, f"{path.parent.name} · "
    return Markup(tag("h1", name) + tag("p", f"{of}{facts}"))


def _problem(words: str) -> Markup:
    return tag("p", tag("strong", "No result. "), f"{words[:1].upper()}{words[1:]}.", role="alert")


def _named(seen: Seen) -> dict[str, float]:
    """Return the classes by names that differ, for a page that knows them by these."""
    found: dict[str, float] = {}
    for name, share in seen.classes:
        called = name[:200] or "(no name)"
        while called in found:
            called += " "
        found[called] = share
    return found
