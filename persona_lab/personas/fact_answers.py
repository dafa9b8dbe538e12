"""Answers of each type, from small lists, for the wrong side of a proposed fact. All are made up or common words.

Draws are decided by the text of the right answer alone, so that proposals stay the same from one call to the next.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable

WRONG = 4
"""Wrong answers drawn for a fact, where there are so many."""


def _listed(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in text.split(","))


WOMEN = _listed("Agnes, Beatrix, Carmen, Daphne, Edith, Farida, Greta, Imogen, Leila, Mathilda, Noor, Ottilie, Petra")
MEN = _listed("Anton, Bernard, Cedric, Dmitri, Edmund, Farouk, Gregor, Hamish, Ivo, Lionel, Matteo, Osric, Rufus")
NAMES = tuple(name for pair in zip(WOMEN, MEN, strict=True) for name in pair)
SURNAMES = _listed("Hale, Brandt, Okoro, Lindqvist, Marlowe, Castellan, Whitlock, Sato, Pereira, Dunne, Varga, Ashdown")
PETS = _listed("Biscuit, Pepper, Rusty, Tinker, Mango, Bramble, Domino, Pickle, Comet, Juniper, Hazel, Waffles")
SHIPS = _listed(
    "Grey Heron, Second Wind, Iron Lark, Patient Star, Lucky Penny, Northern Rose, Silent Tern, Old Faithful"
)
WEAPONS = _listed("Dawnbreaker, Widowthorn, Grimtooth, Starfall, Oathkeeper, Stormcaller, Nightbriar, Emberfang")
SHOPS = _listed(
    "The Copper Kettle, The Blue Lantern, The Crooked Spoon, The Velvet Fox, The Silver Thimble, The Paper Moon,"
    " The Wandering Goose"
)
COMPANIES = _listed(
    "Harrow & Finch, Northgate Industries, Bluewater Trading, Meridian Works, Halcyon Labs, Oakridge Partners,"
    " Summit Logistics"
)
SCHOOLS = _listed(
    "Ashford College, Westbrook University, Saint Alban's Academy, Larkhill School, Redfern Institute,"
    " Hollowmere College, Kingsmoor University"
)
CITIES = _listed(
    "Tokyo, Paris, London, New York, Sydney, Mumbai, Toronto, Beijing, Berlin, Rome, Madrid, Chicago, Moscow, Cairo,"
    " Dubai, Seoul, Lisbon, Vienna, Dublin, Boston, Los Angeles, San Francisco, Seattle, Istanbul, Prague, Amsterdam,"
    " Barcelona, Milan, Warsaw, Athens, Stockholm, Oslo, Copenhagen, Budapest, Edinburgh, Manchester, Melbourne,"
    " Shanghai, Hong Kong, Singapore, Bangkok, Delhi, Nairobi, Lagos, Buenos Aires, Lima, Montreal, Vancouver, Osaka,"
    " Kyoto, Detroit, Philadelphia, Atlanta, Miami, Houston, Denver,"
    " Glasgow, Liverpool, Naples, Venice, Florence, Munich, Hamburg, Marseille, Lyon, Rio de Janeiro, Mexico City"
)
REGIONS = _listed(
    "Texas, California, Florida, Alaska, Hawaii, Brooklyn, the Bronx, Queens, Manhattan, Bavaria, Cornwall"
)
COUNTRIES = _listed(
    "Italy, France, Germany, Spain, Portugal, Greece, Norway, Sweden, Denmark, Finland, Poland, Russia, Ukraine, Japan,"
    " China, South Korea, India, Thailand, Vietnam, Indonesia, Malaysia, the Philippines, Australia, New Zealand,"
    " Canada, Mexico, Brazil, Argentina, Chile, Peru, Colombia, Cuba, Egypt, Morocco, Nigeria, Ghana, Kenya, Ethiopia,"
    " South Africa, Turkey, Iran, Israel, Lebanon, Ireland, Scotland, Wales, England, the United States,"
    " the United Kingdom, Iceland, Hungary, Romania, Austria, Switzerland, Belgium, the Netherlands, Pakistan,"
    " Bangladesh, Nepal, Jamaica, Haiti, Venezuela, Bolivia, Syria, Iraq, Afghanistan, Saudi Arabia, Somalia, Senegal"
)
_FAR = _listed("Tokyo, Lisbon, Toronto, Cairo, Dublin, Oslo, Nairobi, Lima, Seoul")
PLACES = _listed(
    "Upper Thornley, Saltbridge, Greywater, Larkmoor, Port Hesper, Ambervale, Stonehollow, Eastmere, Fallowdale"
)
NATIONALITIES = _listed(
    "Italian, French, German, Spanish, Portuguese, Greek, Norwegian, Swedish, Danish, Finnish, Polish, Russian,"
    " Ukrainian, Japanese, Chinese, Korean, Indian, Thai, Vietnamese, Indonesian, Malaysian, Filipino, Australian,"
    " Canadian, Mexican, Brazilian, Argentinian, Chilean, Peruvian, Colombian, Cuban, Egyptian, Moroccan, Nigerian,"
    " Ghanaian, Kenyan, Ethiopian, Turkish, Iranian, Israeli, Lebanese, Irish, Scottish, Welsh, English, British,"
    " American, Icelandic, Hungarian, Romanian, Austrian, Swiss, Belgian, Dutch, Pakistani, Jamaican, Czech"
)
SPECIES = _listed(
    "human, elf, half-elf, dwarf, orc, half-orc, goblin, gnome, halfling, vampire, werewolf, mermaid, fairy, ghost,"
    " dragon, kitsune, centaur, android, robot, cyborg, dark elf, high elf, wood elf, tiefling, dragonborn, dryad,"
    " succubus, lich, golem, nymph, catgirl, naga, harpy, minotaur, faun, satyr, merman, alien"
)
SPECIES_WRONG = _listed("human, elf, dwarf, vampire, werewolf, android, ghost, goblin, dragon, centaur, halfling")
JOBS = _listed(
    "accountant, actor, actress, alchemist, apothecary, archaeologist, architect, archer, artist, assassin, astronaut,"
    " astronomer, athlete, author, baker, ballerina, barber, bard, barista, bartender, beekeeper, biologist,"
    " blacksmith, bookseller, botanist, bounty hunter, boxer, bus driver, butcher, butler, carpenter, cartographer,"
    " cellist, chef, chemist, cleric, clockmaker, coach, comedian, composer, cook, courier, cowboy, curator, dancer,"
    " dentist, detective, diplomat, doctor, druid, electrician, engineer, explorer, farmer, fashion designer,"
    " filmmaker, firefighter, fisherman, florist, food critic, game designer, gardener, geologist, graphic designer,"
    " guitarist, hacker, hairdresser, herbalist, historian, homemaker, ghost hunter, demon hunter,"
    " monster hunter, vampire hunter, illustrator, innkeeper, inventor,"
    " janitor, jeweller, jeweler, journalist, judge, knight, lawyer, librarian, lighthouse keeper, locksmith, mage,"
    " maid, mathematician, mayor, mechanic, mercenary, merchant, midwife, miner, model, monk, musician, necromancer,"
    " novelist, nun, nurse, office worker, painter, paladin, paramedic, pharmacist, philosopher, photographer,"
    " physicist, pianist, pilot, pirate, plumber, poet, police officer, politician, postman, priest, priestess,"
    " private investigator, professor, programmer, psychologist, ranger, real estate agent, receptionist, reporter,"
    " sailor, salvage pilot, scholar, scientist, sculptor, seamstress, secretary, shepherd, shopkeeper, singer,"
    " smuggler, social worker, software developer, software engineer, soldier, sorcerer, sorceress, spy, stockbroker,"
    " student, surgeon, swordsman, tailor, taxi driver, teacher, therapist, thief, truck driver, veterinarian,"
    " violinist, waiter, waitress, warrior, watchmaker, web developer, welder, witch, wizard, writer, yoga instructor"
)
JOBS_WRONG = _listed(
    "accountant, baker, carpenter, dentist, electrician, farmer, florist, journalist, lawyer, librarian, mechanic,"
    " nurse, pharmacist, photographer, pilot, plumber, tailor, teacher, translator, watchmaker"
)
HAIR = _listed(
    "black, brown, blonde, blond, red, auburn, ginger, grey, gray, white, silver, golden, pink, blue, green, purple,"
    " violet, teal, orange, copper, chestnut, platinum, raven, crimson, lavender, turquoise, brunette"
)
HAIR_WRONG = _listed("black, brown, blonde, red, grey, white, green, pink, blue")
EYES = _listed(
    "brown, blue, green, hazel, grey, gray, amber, violet, purple, red, golden, gold, silver, black, pink, crimson,"
    " emerald, teal, yellow, orange, turquoise, sapphire, white"
)
EYES_WRONG = _listed("brown, blue, green, grey, violet, hazel, amber, black")
HOBBIES = _listed(
    "hiking, painting, dancing, cooking, reading, gardening, fishing, baking, swimming, knitting, singing, drawing,"
    " sewing, running, climbing, sailing, cycling, surfing, skiing, birdwatching, stargazing, photography, chess,"
    " wordplay, pottery, calligraphy, embroidery, woodworking, skateboarding, camping, origami, archery, poetry, yoga"
)
HOBBIES_WRONG = _listed("fishing, knitting, surfing, pottery, archery, birdwatching, origami, skiing, beekeeping")
INSTRUMENTS = _listed(
    "piano, violin, guitar, flute, cello, harp, drums, trumpet, saxophone, harmonica, accordion, banjo, bassoon, oboe,"
    " clarinet, lute, viola, ukulele, organ, bass guitar, fiddle, mandolin, bagpipes, trombone"
)
INSTRUMENTS_WRONG = _listed("piano, violin, flute, cello, harp, trumpet, saxophone, accordion, banjo, oboe")
DISLIKES = _listed(
    "spiders, loud music, cold weather, mushrooms, crowds, early mornings, thunderstorms, gossip, queues, paperwork"
)
FEARS = _listed("spiders, heights, the dark, deep water, thunder, fire, snakes, clowns, needles, small spaces")
SUBJECTS = _listed(
    "medicine, law, physics, chemistry, biology, history, philosophy, economics, architecture, psychology, mathematics,"
    " literature, engineering, computer science, linguistics, astronomy, geology, music, art history, journalism"
)
SIGNS = _listed("Aries, Taurus, Gemini, Cancer, Leo, Virgo, Libra, Scorpio, Sagittarius, Capricorn, Aquarius, Pisces")
FOODS = _listed("mushroom soup, apple pie, fried rice, pancakes, lentil stew, pizza, cheese toast, dumplings, curry")
DRINKS = _listed("black coffee, green tea, lemonade, hot chocolate, apple juice, ginger beer, red wine, milk")
COLOURS = _listed("red, blue, green, yellow, purple, orange, white, black, pink")
ANIMALS = _listed("foxes, owls, horses, dolphins, rabbits, elephants, bears, swans, otters")
SEASONS = _listed("spring, summer, autumn, winter")
FLOWERS = _listed("roses, tulips, sunflowers, lilies, daisies, violets, orchids")
MUSIC = _listed("jazz, opera, punk rock, country music, techno, folk music, blues")
SPORTS = _listed("tennis, football, fencing, rowing, cricket, basketball, boxing")
COLLECTED = _listed("stamps, old coins, postcards, seashells, teapots, buttons, comic books, vinyl records, keys")
FAVOURITES = {
    "food": FOODS,
    "dish": FOODS,
    "meal": FOODS,
    "drink": DRINKS,
    "color": COLOURS,
    "colour": COLOURS,
    "animal": ANIMALS,
    "season": SEASONS,
    "flower": FLOWERS,
    "music": MUSIC,
    "sport": SPORTS,
}
MONTHS = _listed("January, February, March, April, May, June, July, August, September, October, November, December")
_NEAR = tuple(
    frozenset(_listed(group))
    for group in (
        "writer, author, novelist, poet, journalist, reporter, translator, historian",
        "doctor, surgeon, dentist, nurse, paramedic, midwife, pharmacist, apothecary, chemist, herbalist, alchemist",
        "artist, painter, photographer, illustrator, sculptor, graphic designer, fashion designer, tailor, seamstress",
        "chef, cook, baker",
        "engineer, inventor, mechanic, electrician, plumber",
        "teacher, professor, coach, librarian, scholar, yoga instructor",
        "pilot, salvage pilot, astronaut",
        "gardener, farmer, florist, botanist, shepherd, beekeeper, homemaker",
        "clockmaker, watchmaker, jeweller, jeweler",
        "lawyer, judge, police officer, detective, private investigator",
        "android, robot, cyborg, golem",
        "vampire, lich, ghost",
        "red, ginger, auburn, copper, crimson, orange, pink",
        "blonde, blond, golden, gold, yellow, platinum, white, silver, grey, gray",
        "brown, brunette, chestnut, hazel, amber",
        "black, raven, brown",
        "golden, gold, yellow, amber, orange, hazel",
        "violet, purple, lavender",
        "blue, teal, turquoise, sapphire, green, emerald",
        "British, English, Scottish, Welsh",
        "England, Scotland, Wales, the United Kingdom",
        "fiddle, violin, viola",
        "guitar, bass guitar, ukulele",
        "fishing, sailing, swimming, surfing",
    )
)
"""Answers of which two may well be true together, or mean the same: never right and wrong of one fact."""
_UNITS = _listed(
    "zero, one, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, thirteen, fourteen, fifteen,"
    " sixteen, seventeen, eighteen, nineteen"
)
_TENS = _listed("twenty, thirty, forty, fifty, sixty, seventy, eighty, ninety")
NUMBER_WORD = rf"(?:(?:{'|'.join(_TENS)})(?:[- ](?:{'|'.join(_UNITS[1:10])}))?|{'|'.join(_UNITS[1:])})"
"""A regular expression of one .. ninety-nine, in words."""


def number_of(text: str) -> int | None:
    """57 of "57", "fifty-seven" or "1,200"; None for anything else."""
    plain = text.strip().lower().replace(",", "")
    if plain.isascii() and plain.isdigit() and len(plain) < 10:
        return int(plain)
    first, _, second = plain.replace(" ", "-").partition("-")
    if first in _UNITS and not second:
        return _UNITS.index(first)
    if first in _TENS and (not second or second in _UNITS[1:10]):
        return (_TENS.index(first) + 2) * 10 + (_UNITS.index(second) if second else 0)
    return None


def in_words(number: int) -> str:
    """1 .. 99 in words."""
    if number < 20:
        return _UNITS[number]
    tens, units = divmod(number, 10)
    return _TENS[tens - 2] + (f"-{_UNITS[units]}" if units else "")


def other_numbers(text: str, least: int = 1) -> tuple[str, ...]:
    """Numbers near the one of `text`, written as it is."""
    number = number_of(text)
    if number is None:
        return ()
    steps = (-9, -6, -4, 5, 7, 11, 14) if number >= 14 else (-3, -2, -1, 1, 2, 3, 4, 5)
    scale = max(1, number // 100 * 3)
    found = [number + step * scale for step in steps if number + step * scale >= least]
    if text.strip()[0].isdigit():
        return tuple(f"{n:,}" if "," in text else str(n) for n in found)
    words = [in_words(n) for n in found if n < 100]
    return tuple(word.capitalize() if text[0].isupper() else word for word in words)


def other_years(text: str) -> tuple[str, ...]:
    """Years near this one."""
    return tuple(str(int(text) + step) for step in (-17, -11, -6, -3, 4, 9))


def other_heights(text: str) -> tuple[str, ...]:
    """Heights near this one, written as it is; the number that changes is the inches', or the centimetres'."""
    feet = re.fullmatch(r"(\d)( ?['’′] ?)(\d{1,2})(\D*)", text)
    if feet:
        inches = int(feet[1]) * 12 + int(feet[3])
        return tuple(f"{i // 12}{feet[2]}{i % 12}{feet[4]}" for i in (inches - 5, inches - 3, inches + 2, inches + 4))
    metric = re.fullmatch(r"(\d{2,3})( ?cm)", text)
    return tuple(f"{int(metric[1]) + step}{metric[2]}" for step in (-13, -6, 5, 11)) if metric else ()


def other_dates(text: str) -> tuple[str, ...]:
    """Dates of other months, written as this one is."""
    month = next((m for m in MONTHS if m.lower() in text.lower()), None)
    day = re.search(r"\d{1,2}", text)
    if month is None or day is None:
        return ()
    found = []
    for shift, other_day in ((2, 3), (5, 14), (8, 21), (10, 26)):
        other = MONTHS[(MONTHS.index(month) + shift) % 12]
        changed = re.sub(month, other, text, flags=re.IGNORECASE)
        ending = {3: "rd", 21: "st"}.get(other_day, "th")
        spelled = f"{other_day}{ending}" if re.search(r"\d(?:st|nd|rd|th)", text) else str(other_day)
        changed = re.sub(r"\d{1,2}(?:st|nd|rd|th)?", spelled, changed)
        found.append(changed)
    return tuple(found)


def other_places(text: str) -> tuple[str, ...]:
    """Countries for a country, cities for a city, invented places for any other."""
    for known in (COUNTRIES, CITIES):
        if any(bare(text) == bare(place) for place in known):
            return known[:24]
    if any(bare(text) == bare(place) for place in REGIONS):
        return _FAR
    return PLACES


def other_people(name: str) -> tuple[str, ...]:
    """Other names of the same form: title, first name, surname."""
    title = re.match(r"(?:Dr|Mr|Mrs|Ms|Miss|Captain|Professor|Sir|Lady|Lord)\.? ", name)
    rest = name[title.end() :] if title else name
    firsts = NAMES if " " not in rest else tuple(f"{a} {b}" for a, b in zip(NAMES, SURNAMES * 3, strict=False))
    return tuple(f"{title[0] if title else ''}{other}" for other in firsts)


def draw(right: str, candidates: Iterable[str], mentioned: Callable[[str], bool]) -> tuple[str, ...]:
    """Up to 4 candidates that differ from the right answer and are not mentioned; empty where there are not 3.

    Args:
        mentioned: whether the card speaks of a candidate: it might be true as well.
    """
    fitting = [c for c in dict.fromkeys(candidates) if bare(c) != bare(right) and not mentioned(c)]
    fitting = [c for c in fitting if bare(c) not in bare(right) and bare(right) not in bare(c)]
    fitting = [c for c in fitting if not any(bare(c) in near and bare(right) in near for near in _NEAR_BARE)]
    random.Random(right).shuffle(fitting)
    return tuple(fitting[:WRONG]) if len(fitting) >= 3 else ()


def bare(text: str) -> str:
    """For comparing: lower case, without a leading article."""
    return re.sub(r"^(?:the|an?) ", "", text.strip().lower())


_NEAR_BARE = tuple(frozenset(bare(answer) for answer in group) for group in _NEAR)
