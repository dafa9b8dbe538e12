"""How Persona Lab looks: a gradio theme with bundled fonts only, and the style sheet of our own pieces."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

PLUM = gr.themes.Color(
    name="plum",
    c50="#f8f5fb",
    c100="#efe8f6",
    c200="#ddcfec",
    c300="#c3abdc",
    c400="#a581c8",
    c500="#8a5fb3",
    c600="#734a9b",
    c700="#5e3b80",
    c800="#4b3066",
    c900="#38244d",
    c950="#241632",
)
SAND = gr.themes.Color(
    name="sand",
    c50="#faf9f7",
    c100="#f3f1ed",
    c200="#e6e2dc",
    c300="#d2ccc4",
    c400="#a39c94",
    c500="#78716b",
    c600="#5c5650",
    c700="#433e3a",
    c800="#2b2725",
    c900="#1e1b1a",
    c950="#151312",
)

# Rules for what is outside gradio's `.contain`, which its scoping of our style sheet cannot reach.
HEAD = """<style>
.gradio-container {
  width: 100% !important; max-width: 1320px !important; min-width: 0 !important; margin: 0 auto !important;
}
.gradio-container .wrap > .contain { min-width: 0; max-width: 100%; }
@media (max-width: 640px) {
  .gradio-container { max-width: 100vw !important; }
  .gradio-container > .main { padding: 10px !important; }
}
</style>"""


def style_sheet() -> Path:
    """The CSS file that goes with the theme."""
    return Path(__file__).with_name("style.css")


def build_theme() -> gr.themes.Base:
    """Plum on warm grey, system fonts (no request leaves the machine), light and dark."""
    theme = gr.themes.Base(
        primary_hue=PLUM,
        secondary_hue=PLUM,
        neutral_hue=SAND,
        radius_size=gr.themes.sizes.radius_lg,
        font=["ui-sans-serif", "system-ui", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Consolas", "monospace"],
    )
    return theme.set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        block_background_fill="white",
        block_background_fill_dark="*neutral_900",
        block_border_width="1px",
        block_shadow="none",
        block_label_text_weight="600",
        block_title_text_weight="600",
        block_title_text_color="*neutral_800",
        block_title_text_color_dark="*neutral_200",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_400",
        input_background_fill="*neutral_50",
        input_background_fill_dark="*neutral_800",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_500",
        button_primary_background_fill_hover_dark="*primary_400",
        button_primary_text_color="white",
        button_secondary_background_fill="white",
        button_secondary_background_fill_hover="*neutral_100",
        button_secondary_background_fill_dark="*neutral_800",
        button_secondary_border_color="*neutral_300",
        button_secondary_border_color_dark="*neutral_700",
        button_border_width="1px",
        button_large_text_weight="600",
    )
