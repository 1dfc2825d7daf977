"""What people are shown: rows, places, figures, pixels, and one page that loads nothing."""

import html
import re
import subprocess
import sys
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from found import (
    HEADS,
    circuit_of,
    findings,
    make_circuit,
    make_interactions,
    make_report,
    make_spec,
    make_verified,
)

from circuitspex import report
from circuitspex.errors import ResultError
from circuitspex.findings import Findings
from circuitspex.report import SECTIONS, head_map_image, render_page, write_page
from circuitspex.report.effect_map import make_effect_map, single_effects
from circuitspex.report.layout import arrange, short_label
from circuitspex.report.style import KINDS

# As Any: plotly's own annotations allow too much to be of use.
circuit_figure: Any = report.circuit_figure
effect_figure: Any = report.effect_figure
energy_figure: Any = report.energy_figure

# Single effects


def test_single_effects_are_at_the_intact_model():
    assert single_effects(findings(make_interactions().to("fourier"))) == pytest.approx(
        {0: -1.0, 3: 0.5, 1: 0.0, 2: 0.0, 4: 0.0, 5: 0.0}, abs=1e-12
    )


# Places


def test_heads_lie_on_a_grid_of_layers_and_heads():
    layout = arrange(HEADS, shown=())
    assert layout.places == {i: (i // 2, i % 2) for i in range(6)}
    assert layout.columns == {0: "0", 1: "1", 2: "2"}
    assert layout.rows == {0: "H0", 1: "H1"}
    assert layout.short_labels


def test_whole_layers_lie_above_the_heads():
    layout = arrange(("L0mlp", "L0H0", "L1attn", "L1H0"), shown=())
    assert layout.rows == {0: "H0", 1: "attn", 2: "mlp"}
    assert layout.places == {0: (0, 2), 1: (0, 0), 2: (1, 1), 3: (1, 0)}


def test_many_neurons_are_stacked_where_shown():
    labels = [f"L{layer}N{neuron}" for layer in range(2) for neuron in range(100)]
    layout = arrange(labels, shown=(150, 7, 120))
    assert layout.places == {7: (0, 0), 120: (1, 0), 150: (1, 1)}
    assert not layout.rows


def test_what_is_no_unit_of_a_model_lies_in_a_row():
    layout = arrange(("Emma", "gave", "L0H0"), shown=(1,))
    assert layout.is_row
    assert layout.places == {0: (0, 0), 1: (1, 0), 2: (2, 0)}
    many = arrange([str(i) for i in range(100)], shown=(30, 99))
    assert many.places == {30: (0, 0), 99: (1, 0)}


@pytest.mark.parametrize(
    ("label", "short"),
    [("L12H5", "12.5"), ("L3mlp", "M3"), ("L3attn", "A3"), ("x" * 30, "x" * 17 + "…")],
)
def test_short_labels_fit_into_a_node(label, short):
    assert short_label(label) == short


# Figures


def traces_of(figure, mode):
    return [trace for trace in figure.data if trace.mode == mode]


def test_every_interaction_is_a_line_wider_for_larger_ones():
    lines = traces_of(circuit_figure(findings()), "lines")
    widths = {line.hovertemplate.split("</b>")[0][3:]: line.line.width for line in lines}
    ranked = [term.label for term in findings().terms if term.order > 1]
    assert sorted(widths, key=lambda units: -widths[units]) == ranked
    colours = {line.name: line.line.color for line in lines}
    assert colours["redundancy"] == KINDS["redundant"].colour
    assert colours["synergy"] == KINDS["synergistic"].colour
    assert len({style.colour for style in KINDS.values()}) == 3


def test_each_kind_is_in_the_legend_once():
    lines = traces_of(circuit_figure(findings()), "lines")
    in_legend = [line.name for line in lines if line.showlegend]
    assert sorted(in_legend) == ["odd order", "redundancy", "synergy"]


def test_a_pair_goes_from_unit_to_unit_and_a_larger_set_through_a_junction():
    figure = circuit_figure(findings())
    nodes = {
        text: (x, y)
        for trace in traces_of(figure, "markers+text")
        for text, x, y in zip(trace.text, trace.x, trace.y, strict=True)
    }
    by_units = {trace.hovertemplate.split("</b>")[0][3:]: trace for trace in figure.data[1:5]}
    pair = by_units["L0H0 + L1H1"]
    assert {(pair.x[0], pair.y[0]), (pair.x[-1], pair.y[-1])} == {nodes["0.0"], nodes["1.1"]}
    triple = by_units["L0H0 + L0H1 + L2H0"]
    assert [(triple.x[i], triple.y[i]) for i in (0, 3, 6)] == [
        nodes["0.0"],
        nodes["0.1"],
        nodes["2.0"],
    ]
    assert {(triple.x[i], triple.y[i]) for i in (1, 4, 7)} == {nodes["3"]}


def test_junctions_keep_clear_of_units_and_each_other():
    terms = {(i, j, k): 1.0 for i in range(6) for j in range(i) for k in range(j)}
    figure = circuit_figure(findings(make_interactions(terms=terms)))
    points = [
        (x, y)
        for trace in figure.data
        if trace.mode in ("markers", "markers+text")
        for x, y in zip(trace.x, trace.y, strict=True)
    ]
    distances = [np.hypot(a[0] - b[0], a[1] - b[1]) for a in points for b in points if a != b]
    assert len(points) == 6 + 12  # twice as many sets as units are drawn
    assert min(distances) > 18


def test_circuit_members_are_filled_and_others_hollow():
    figure = circuit_figure(findings(circuit=circuit_of(0, 3)))
    filled = {trace.name: trace for trace in traces_of(figure, "markers+text")}
    assert filled["in the circuit"].text == ("0.0", "1.1")
    assert filled["not in the circuit"].marker.color == "white"
    assert filled["in the circuit"].marker.color != "white"


def test_only_the_largest_are_drawn():
    figure = circuit_figure(findings(), n_shown=1)
    assert len(traces_of(figure, "lines")) == 1


def test_what_may_be_zero_is_not_drawn():
    unclear = findings(make_interactions(std_error=0.5))
    figure = circuit_figure(unclear)
    drawn = [line.hovertemplate.split("</b>")[0][3:] for line in traces_of(figure, "lines")]
    assert sorted(drawn) == ["L0H0 + L1H1", "L0H1 + L2H1"]
    assert "2 largest interactions whose interval excludes zero" in render_page(unclear)


def test_the_refuted_are_not_drawn_and_the_verified_are_in_their_measured_size():
    figure = circuit_figure(findings(verification=make_verified()))
    lines = {line.hovertemplate.split("</b>")[0][3:]: line for line in traces_of(figure, "lines")}
    assert set(lines) == {"L0H1 + L2H1", "L0H0 + L0H1 + L2H0", "L1H0 + L1H1 + L2H0 + L2H1"}
    assert lines["L0H1 + L2H1"].line.width == pytest.approx(1.2 + 5.3 * 0.5 / 0.625)
    hover = lines["L0H1 + L2H1"].hovertemplate
    assert "0.500 ± 0.100, verified<br>estimate 1.500, 95 % interval 1.304 … 1.696" in hover


def test_the_undecided_are_drawn_where_their_estimate_is_clear():
    verified = make_verified(verdicts=("undecided", "undecided", "verified", "not checked"))
    for std_error, n_drawn in ((0.5, 3), (2.0, 1)):
        interactions = make_interactions(std_error=std_error)
        figure = circuit_figure(findings(interactions, verification=verified))
        assert len(traces_of(figure, "lines")) == n_drawn


def test_the_map_holds_single_effects_and_marks_the_circuit():
    figure = effect_figure(findings(circuit=circuit_of(3)))
    (heatmap,) = figure.data
    np.testing.assert_array_equal(heatmap.z, [[-1, 0, 0], [0, 0.5, 0]])
    assert (heatmap.zmin, heatmap.zmax) == (-1, 1)
    (box,) = figure.layout.shapes
    assert (box.x0 + box.x1, box.y0 + box.y1) == (2, 2)


def test_places_without_a_unit_are_empty():
    effects = make_effect_map(findings(make_interactions(("L0H0", "L1H1"), {(0,): -1.0})))
    assert effects is not None
    np.testing.assert_array_equal(effects.values, [[-1, np.nan], [np.nan, 0]])


def test_many_neurons_share_cells_and_the_strongest_shows():
    labels = [f"L0N{neuron}" for neuron in range(640)]
    interactions = make_interactions(labels, {(5,): -2.0, (7,): 1.0})
    effects = make_effect_map(findings(interactions, circuit=circuit_of(7, units=labels)))
    assert effects is not None
    assert effects.values.shape == (64, 1)
    assert effects.rows_per_cell == 10
    assert effects.values[0, 0] == -2.0
    assert effects.hover[0][0].startswith("L0N5: −2.000")
    assert effects.row_names[:2] == ["N0 … N9", "N10 … N19"]
    assert effects.in_circuit[:, 0].tolist() == [True] + [False] * 63


def test_features_are_bars():
    (bars,) = effect_figure(findings(make_interactions(("a", "b"), {(1,): -0.5}))).data
    assert bars.type == "bar"
    assert bars.y == (-0.5,)


def test_energy_adds_up_to_all():
    (bars,) = energy_figure(findings()).data
    assert bars.x == ("order 1", "order 2", "order 3", "order 4")
    assert sum(bars.y) == pytest.approx(100)


# Pixels


def test_the_image_has_the_colours_of_the_effects():
    units = ("L0H0", "L0H1", "L1H0")
    interactions = make_interactions(units, {(0,): -1.0, (1,): 1.0})
    image = head_map_image(findings(interactions, circuit=circuit_of(1, units=units)), cell=8)
    assert image is not None
    assert image.shape == (16, 16, 3)
    lower_left, upper_left, lower_right, upper_right = (
        image[row, column].tolist() for row, column in [(12, 4), (4, 4), (12, 12), (4, 12)]
    )
    assert lower_left == [118, 42, 131]  # purple: worse without it
    assert upper_left == [27, 120, 55]  # green: better
    assert lower_right == [247, 247, 247]  # no effect
    assert upper_right == [255, 255, 255]  # no unit
    assert image[0, 0].tolist() == [31, 41, 51]  # outlined
    assert image[15, 0].tolist() == [118, 42, 131]


def test_there_is_no_image_of_features():
    assert head_map_image(findings(make_interactions(("a", "b"), {(0,): 1.0}))) is None


# The page


class Loads(HTMLParser):
    """Collects what a page would load, and its tags and script texts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.loads, self.tags, self.texts = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name in {"src", "href", "srcset", "action", "data", "poster"}:
                self.loads.append(value)

    def handle_data(self, data):
        self.texts.append(data)
        if self.tags[-1:] == ["style"]:
            self.loads += re.findall(r"@import|url\([^)]*\)", data)


def full_page() -> str:
    return render_page(findings(circuit=make_circuit(), criteria=make_report()))


def test_the_page_loads_nothing():
    parsed = Loads(full_page())
    assert parsed.loads == []
    assert "link" not in parsed.tags


@pytest.mark.parametrize(
    "page",
    ['<script src="https://cdn.plot.ly/x.js">', "<style>@import 'x.css'</style>", '<a href="/x">'],
)
def test_the_check_for_loads_would_notice(page):
    assert Loads(page).loads


def test_plotly_is_inlined_once():
    page = full_page()
    assert page.count("plotly.js v") == 1
    assert len(page) < 6_000_000


EVIL = '</script><script>alert("1")</script><b>&amp;'


def test_labels_and_settings_are_escaped():
    labels = (EVIL, "b", "c", "d", "e", "f")
    interactions = make_interactions(labels, decoder=EVIL)
    spec = make_spec(model=EVIL, task={"name": "t", "first_prompt": EVIL})
    criteria = make_report(notes=EVIL, units=(EVIL,))
    page = render_page(
        Findings(spec, interactions, circuit=make_circuit(labels), criteria=criteria)
    )
    assert EVIL not in page
    assert html.escape(EVIL) in page
    assert Loads(page).tags.count("script") == Loads(full_page()).tags.count("script")


def test_plotly_is_given_labels_that_it_cannot_take_for_markup():
    labels = ('<a href="http://x">', "b", "c", "d", "e", "f")
    labelled = findings(make_interactions(labels))
    figure = circuit_figure(labelled)
    assert "<a href" not in figure.to_json()
    assert "<a href" not in effect_figure(labelled).to_json()
    assert "&lt;a href" in figure.to_json()


def test_the_page_shows_the_facts_the_rows_and_the_verification():
    text = " ".join(Loads(full_page()).texts)
    for fact in ("toy on ioi", "logit difference", "proxyspex", "1,234", "0.877", "0.9"):
        assert fact in text
    for cell in ("L0H0 + L1H1", "−2.000", "−2.196 … −1.804", "redundant", "synergistic"):
        assert cell in text
    assert "Faithfulness is 0.700 ± 0.050 (standard error)" in text
    assert "measured on 32 prompts not used for finding it" in text
    assert "The interactions predicted 0.740" in text
    assert "this way of processing the weights (folded)" in text
    assert "Such as “Emma <gave> it to”" in text
    assert "6, L0H0 to L2H1" in text
    for name in ("circuit", "effects", "energy"):
        assert f'Plotly.newPlot(                        "figure-{name}"' in text
    assert '"processing": "folded"' in text


def test_the_page_shows_measured_effects_beside_estimates():
    page = render_page(findings(circuit=make_circuit(), verification=make_verified()))
    text = " ".join(Loads(page).texts)
    cells = re.findall(r"<td class=\"units\">.*?</tr>", page)
    rows = [re.sub(r"<[^>]+>", " ", cell).split() for cell in cells]
    assert rows[0][:12] == [
        *("L0H0", "+", "L0H1", "+", "L2H0"),
        *("0.625", "±", "0.125", "verified", "0.750", "0.554", "…"),
    ]
    assert "refuted" in rows[2]
    assert "– not checked 0.250 0.054 … 0.446" in " ".join(rows[3])
    assert "around the intact model, on 2 prompts of the discovery" in text
    assert "Of 3 so measured with 30 evaluations: 2 verified, 1 refuted, 0 undecided" in text
    drawn = "2 verified interactions in their measured size and 1 more whose interval"
    assert drawn in text
    assert "Interactions were measured on the prompts they were found on" in text
    assert Loads(page).loads == []


def test_one_prompt_and_held_out_prompts_are_told_apart():
    exact = make_verified(
        n_prompts=1, std_errors=(None,) * 4, intervals=(None,) * 4, p_values=(None,) * 4
    )
    page = render_page(findings(verification=exact))
    assert "One prompt, so the measured effects have no error" in page
    fresh = make_verified(held_out=True)
    page = render_page(findings(verification=fresh))
    assert "on 2 prompts held out" in page
    assert "Interactions were measured on the prompts they were found on" not in page


def test_a_verification_of_nothing_changes_nothing():
    nothing = make_verified(
        verdicts=("not checked",) * 4, measured=(None,) * 4, prompt_values=(None,) * 4
    )
    plain = render_page(findings())
    page = render_page(findings(verification=nothing))
    start, end = "<h2>Interactions</h2>", "</section>"
    assert page.split(start)[1].split(end)[0] == plain.split(start)[1].split(end)[0]


def test_the_largest_interactions_only_are_tabulated_and_the_rest_counted():
    terms = {(i, j): 1.0 + i + j / 10 for i in range(12) for j in range(i)}
    labels = [f"L0H{head}" for head in range(12)]
    page = render_page(findings(make_interactions(labels, terms)))
    assert "The 40 largest of 66 interactions" in page
    assert page.count('<td class="units"><span') == 40


def test_what_was_not_done_is_said():
    page = render_page(findings(make_interactions(held_out_r2=None)))
    assert "No circuit was verified in the model." in page
    assert "How well they predict other masks was not measured." in page
    assert "none chosen" in page
    criteria = make_report(held_out=False, std_error=None, n_prompts=None)
    page = render_page(findings(circuit=make_circuit(), criteria=criteria))
    assert "on the prompts it was found on, not on new ones" in page


@pytest.mark.parametrize(
    ("units", "terms"),
    [
        (("Emma", "gave", "a", "book"), {(0,): 1.0, (0, 1): 1.0, (1, 2, 3): -2.0}),
        (("0", "1"), {(): 1.0}),
        (("L0H0",), {}),
        ([f"L0N{i}" for i in range(200)], {(0, 199): 1.0}),
    ],
    ids=["features", "constant", "nothing", "neurons"],
)
def test_any_units_and_terms_make_a_page(units, terms):
    page = render_page(findings(make_interactions(units, terms)))
    assert Loads(page).loads == []


def test_an_exact_result_claims_no_more_and_no_less():
    terms = {(): 1.0, (0,): 2.0, (1,): 3.0, (0, 1): 4.0}
    page = render_page(findings(make_interactions(("L0H0", "L0H1"), terms)))
    assert "Every mask was evaluated (1,234 evaluations)" in page
    assert "were not decoded" not in page
    assert "were not decoded" in render_page(findings())


def test_a_faithfulness_beyond_its_scale_stays_on_the_page():
    for faithfulness in (-0.5, 1.7):
        criteria = make_report(faithfulness=faithfulness)
        page = render_page(findings(circuit=make_circuit(), criteria=criteria))
        track = page[page.index('<div class="track"') :].split("</div>")[0]
        shares = [float(share) for share in re.findall(r"(?:left|width):(-?[\d.]+)%", track)]
        assert len(shares) == 4
        assert all(0 <= share <= 100 for share in shares)


def test_the_page_is_written_whole(tmp_path):
    path = write_page(tmp_path / "report.html", findings())
    assert path.read_text().endswith("</html>\n")
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.slow
def test_plotly_is_imported_only_to_draw():
    code = (
        "import sys, circuitspex.report\nprint('plotly' in sys.modules)\n"
        "from circuitspex.report.style import figure_with_defaults\nfigure_with_defaults()\n"
        "print('plotly' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["False", "True"]


def test_a_page_without_joint_terms_says_what_that_means():
    alone = make_interactions(terms={(0,): 1.0, (3,): -2.0})
    page = render_page(findings(alone, circuit=make_circuit(), criteria=make_report()))
    assert "not that there is none" in page
    assert "There is no interaction" in page
    assert "0 largest" not in page


def test_a_page_that_cannot_be_written_says_what_to_do(tmp_path):
    with pytest.raises(ResultError, match=r"report\.html cannot be written.*free space"):
        write_page(tmp_path / "no" / "report.html", findings())


def test_a_new_section_is_a_function_and_a_line():
    def notes(found: Findings) -> str:
        return f"<section>all {found.interactions.n_units} units</section>"

    before = full_page()
    SECTIONS.append(notes)
    try:
        after = full_page()
    finally:
        SECTIONS.remove(notes)
    assert "all 6 units" not in before
    assert after.replace(notes(findings()), "").split() == before.split() != after.split()
