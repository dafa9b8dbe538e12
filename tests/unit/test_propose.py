"""Facts proposed from card text: what must be read, what must not, and that a long or nasty card takes no time."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from persona_lab.personas.cards import read_card
from persona_lab.personas.fact_answers import draw, in_words, number_of, other_dates, other_heights, other_numbers
from persona_lab.personas.propose import ProposedFact, propose_facts
from persona_lab.personas.store import example_folders, load_persona
from persona_lab.types import Fact, Persona


def card(description: str, name: str = "Luna Vale", **fields: str) -> Persona:
    data = {"name": name, "description": description, **fields}
    return Persona(id="x", name=name, card={"data": data})


def answers(description: str, **fields: str) -> dict[str, str]:
    """Question -> answer, without the name."""
    found = propose_facts(card(description, **fields))
    return {p.fact.question: p.fact.answer for p in found if p.kind != "name"}


PROSE = """{{char}}, 28, is a Scottish lighthouse keeper with auburn hair. She was born in Port Hesper and lives in
Oslo. She stands 172 cm tall. Her eyes are a deep green. She plays the fiddle, collects bottle caps and fears deep
water. She loathes cold porridge. Her father was a welder. Luna has a one-eyed cat named Pip. Luna works for Ferrow
Marine. She flies a battered ship called the Wren. She has a younger brother, Tom. She enjoys knitting.""".replace(
    "\n", " "
)
EXPECTED = {
    "How old are you?": "28",
    "What is your occupation?": "lighthouse keeper",
    "What is your nationality?": "Scottish",
    "What colour is your hair?": "auburn",
    "What colour are your eyes?": "green",
    "Where were you born?": "Port Hesper",
    "Where do you live?": "Oslo",
    "How tall are you?": "172 cm",
    "Which instrument do you play?": "fiddle",
    "What do you collect?": "bottle caps",
    "What are you afraid of?": "deep water",
    "What do you hate?": "cold porridge",
    "What was your father's job?": "welder",
    "What is your cat called?": "Pip",
    "Where do you work?": "Ferrow Marine",
    "What is your ship called?": "the Wren",
    "What is your brother's name?": "Tom",
    "What is a hobby of yours?": "knitting",
}


# --- what is read ---------------------------------------------------------------------------------


def test_prose_is_read() -> None:
    assert answers(PROSE) == EXPECTED


@pytest.mark.parametrize(
    "text",
    [
        "Age: 23\nHair: silver, long\nEyes: Blue\nOccupation: Mage\nSpecies: Elf\nHeight: 170 cm",
        "- **Age:** 23 years old\n- **Hair:** Silver\n- **Eyes:** blue\n- **Occupation:** Mage\n- **Species:** Elf\n"
        "- **Height:** 170 cm",
        '[Character("Luna") { Age("23" + "Twenty three") Hair("long" + "silver") Eyes("Blue") Occupation("Mage")'
        ' Species("Elf") Height("170 cm") }]',
        "Luna Vale = [age: 23; hair: silver; eyes: blue; occupation: mage; species: elf; height: 170 cm]",
        "<char>\nName: Luna Vale;\nAge = 23;\nHair = silver;\nEyes = blue;\nJob = mage;\nRace = elf;\nHeight = 170 cm;",
    ],
    ids=["lines", "markdown", "w++", "plist", "equals"],
)
def test_attributes_are_read(text: str) -> None:
    assert answers(text) == {
        "How old are you?": "23",
        "What colour is your hair?": "silver",
        "What colour are your eyes?": "blue",
        "What is your occupation?": "mage",
        "What species are you?": "elf",
        "How tall are you?": "170 cm",
    }


def test_first_and_second_person_are_read() -> None:
    first = answers("I am Luna, a 31-year-old chef. My brother is called Tom. I live in a small flat in Lisbon.")
    assert first == {
        "How old are you?": "31",
        "What is your occupation?": "chef",
        "What is your brother's name?": "Tom",
        "Where do you live?": "Lisbon",
    }
    second = answers("You are Luna, a Japanese violinist. You have long black hair. You were born in Osaka.")
    assert second == {
        "What is your occupation?": "violinist",
        "What is your nationality?": "Japanese",
        "What colour is your hair?": "black",
        "Where were you born?": "Osaka",
    }


def test_one_line_personas_are_read() -> None:
    assert answers("A 71-year-old retired bus driver from Italy who loves fishing") == {
        "How old are you?": "71",
        "What was your occupation before you retired?": "bus driver",
        "Where are you from?": "Italy",
        "What is a hobby of yours?": "fishing",
    }
    assert answers("A 34-year-old single mother of three from the Bronx, working two jobs") == {
        "How old are you?": "34",
        "How many children do you have?": "three",
    }


# --- what must not be read ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "{{user}} is a 30-year-old teacher from Paris. He has blue eyes.",
        "{{user}}: I am 40 years old. I live in Rome.",
        "Luna met Karl. He is 50 years old. He lives in Rome.",
        "Luna knows an old woman. She is a nurse.",
        "Luna's horse is black. She is 8 years old.",
        "When Luna was 12 years old she met Tom.",
        "Luna looks about 20 but might be older.",
        "Luna pretends to be a doctor.",
        "Luna is not a nurse.",
        "Luna was a soldier once.",
        "Luna wants to be a pilot.",
        "Luna is an amateur photographer.",
        "Luna is a doctor's assistant.",
        "Luna is a pirate at heart.",
        "Luna is a model citizen.",
        "Luna is ten minutes late.",
        "Luna is one of a kind.",
        "Luna is one and only.",
        "Luna is from a wealthy family.",
        "Luna loves men with green eyes.",
        "Luna hates when people lie. Luna despises her stepfather.",
        "Luna has blue hair when angry.",
        "Luna works in her bar, Mia sings there.",
        "Luna is a nurse. Luna is a doctor.",
        "Age: 18+",
        "Age: 20-25",
        "Age: 20s",
        "Age: unknown\nHair: ?\nOccupation: none\nHome: Apartment\nRace: Asian\nBirthplace: Unknown",
        "Eyes: one blue, one green\nHair: black with red tips",
        "Mia's age: 12",
        "Name: Mia\nAge: 31\nOccupation: nurse",
        'She said, "I am a 40-year-old plumber from Rome and I hate loud music, you know."',
    ],
)
def test_what_is_doubtful_or_about_others_is_not_proposed(text: str) -> None:
    assert answers(text) == {}


def test_attributes_of_the_next_character_do_not_count() -> None:
    assert answers("Name: Luna Vale\nAge: 23\n\nName: Mia\nHair: red\nOccupation: nurse") == {"How old are you?": "23"}


def test_cards_of_several_people_have_no_proposals() -> None:
    assert propose_facts(card("Anna is 24. She is a nurse.", name="Anna & Ben")) == []


def test_a_contradiction_is_not_proposed_and_agreement_is() -> None:
    assert answers("Age: 24\nLuna is a 25-year-old nurse.") == {"What is your occupation?": "nurse"}
    assert answers("Age: twenty-five\nLuna is a 25-year-old nurse.")["How old are you?"] == "twenty-five"


# --- the shape of a proposal ----------------------------------------------------------------------


def check(proposal: ProposedFact, persona: Persona) -> None:
    fact, text = proposal.fact, json.dumps(persona.card, ensure_ascii=False).lower()
    assert len(fact.paraphrases) == 2
    assert len({fact.question, *fact.paraphrases}) == 3
    assert 3 <= len(set(fact.wrong)) <= 4
    assert fact.answer not in fact.wrong
    assert proposal.sentence
    for question in (fact.question, *fact.paraphrases):
        assert question.endswith("?")
        assert fact.answer.lower() not in question.lower().replace("?", "").split()
    for wrong in fact.wrong:
        assert f" {wrong.lower()} " not in text


def test_every_proposal_can_be_asked_and_is_the_same_every_time() -> None:
    persona = card(PROSE)
    first, second = propose_facts(persona), propose_facts(persona)
    assert first == second
    for proposal in first:
        check(proposal, persona)
    assert len({p.fact.id for p in first}) == len(first)
    assert propose_facts(persona, limit=3) == first[:3]


def test_what_is_a_fact_already_is_not_proposed_again() -> None:
    known = Fact(id="job", question="How old are YOU", answer="28", wrong=("1", "2", "3"))
    persona = card("Luna is a 28-year-old nurse.").model_copy(update={"facts": (known,)})
    proposals = {p.fact.id: p.fact.question for p in propose_facts(persona)}
    assert proposals == {"name": "What is your name?", "job_2": "What is your occupation?"}


def test_wrong_answers_are_never_what_the_card_mentions() -> None:
    text = "Luna is a 28-year-old nurse. She plays the harp, but her friends play oboe, cello, banjo, violin and piano."
    persona = card(text, first_mes="A trumpet, an accordion or a flute? Call the baker, the florist and the lawyer.")
    by_question = {p.fact.question: p.fact for p in propose_facts(persona)}
    assert "Which instrument do you play?" not in by_question  # only the saxophone would be left
    assert not {"baker", "florist", "lawyer"} & set(by_question["What is your occupation?"].wrong)


def test_answers_that_may_both_be_true_do_not_stand_against_each_other() -> None:
    for text, question, never in (
        ("Luna is a writer.", "What is your occupation?", {"journalist", "translator"}),
        ("Luna has teal hair.", "What colour is your hair?", {"blue", "green"}),
        ("Luna is from England.", "Where are you from?", {"Scotland", "Wales", "the United Kingdom"}),
        ("Luna is from California.", "Where are you from?", {"Los Angeles", "San Francisco"}),
    ):
        facts = {p.fact.question: p.fact for p in propose_facts(card(text))}
        assert not never & set(facts[question].wrong)


def test_other_answers_look_like_the_right_one() -> None:
    assert all(len(n) == 2 and n.isdigit() for n in other_numbers("57"))
    assert "sixty-two" in other_numbers("fifty-seven")
    assert other_heights("5'6\"")[0] == "5'1\""
    assert other_dates("March 3rd")[0] == "May 3rd"
    assert [number_of(in_words(n)) for n in range(1, 100)] == list(range(1, 100))
    assert draw("a", ("b", "c"), lambda answer: False) == ()


# --- bounds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "piece",
    [
        "a ",
        "her ",
        "Luna ",
        "Luna, ",
        "(",
        '"',
        "A-",
        "* ",
        "x's ",
        "\n- a",
        "Age: ",
        "{{char}} ",
        "very, tall, ",
        "Luna is a tall red old kind of person with her brother and red hair. ",
    ],
)
def test_long_cards_take_no_time(piece: str) -> None:
    text = (piece * 200_000)[:200_000]
    start = time.perf_counter()
    propose_facts(card(f"Luna is a {text}", personality=text, scenario=text, first_mes=text))
    assert time.perf_counter() - start < 1.0


def test_damaged_cards_are_no_error() -> None:
    assert propose_facts(Persona(id="x", name="", card={})) == []
    odd = Persona(id="x", name="Luna", card={"data": {"description": 5, "alternate_greetings": "no list"}})
    assert [p.kind for p in propose_facts(odd)] in ([], ["name"])
    brackets = Persona(id="x", name="Lu(na [x", card={"data": {"description": "Lu(na [x is a 24-year-old nurse."}})
    assert {p.fact.answer for p in propose_facts(brackets)} >= {"24", "nurse"}


def test_proposing_needs_no_heavy_library() -> None:
    code = "import sys, persona_lab.personas.propose; print([m for m in ('torch', 'sklearn') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# --- cards that nobody wrote for this test ----------------------------------------------------------


@pytest.mark.parametrize("name", sorted(example_folders()))
def test_shipped_cards_have_right_proposals(name: str) -> None:
    persona = load_persona(example_folders()[name])
    found = {p.fact.question: p.fact.answer for p in propose_facts(persona.model_copy(update={"facts": ()}))}
    known = {
        "ambrose_pell": {
            "What is your name?": "Dr. Ambrose Pell",
            "How old are you?": "fifty-seven",
            "What is your occupation?": "apothecary",
        },
        "magpie": {"How old are you?": "38"},
        "nan_tolliver": {"What is your name?": "Nan Tolliver", "How old are you?": "71"},
    }
    assert found.items() <= known.get(name, found).items()
    for proposal in propose_facts(persona):
        check(proposal, persona)


def test_one_line_personas_of_others(test_data: Path) -> None:
    """Ages and places are plain in these lines: each proposal must stand in its line, and most lines give some."""
    file = test_data / "personagym" / "personas_200.json"
    if not file.is_file():
        pytest.skip(f"no {file}")
    lines = json.loads(file.read_text(encoding="utf-8"))
    proposed = 0
    for line in lines:
        persona = card(line, name="Robin")
        for proposal in propose_facts(persona):
            check(proposal, persona)
            if proposal.kind != "name":
                proposed += 1
                assert proposal.fact.answer in line
    assert proposed >= 2.5 * len(lines)


def test_cards_of_others(test_data: Path) -> None:
    path = test_data / "cards" / "luna_v3_with_lorebook.json"
    if not path.is_file():
        pytest.skip(f"no {path}")
    whole = read_card(path).card
    persona = Persona(id="x", name=whole["data"]["name"], card=whole)
    found = {p.fact.question: p.fact.answer for p in propose_facts(persona)}
    assert found["What colour is your hair?"] == "silver"
    assert found["What colour are your eyes?"] == "blue"
    assert found["What is your occupation?"] == "mage"
