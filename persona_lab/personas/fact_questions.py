"""How a proposed fact is asked: each question with two paraphrases, none of which says an answer."""

from __future__ import annotations

Asks = tuple[str, str, str]
"""A question and its paraphrases."""

AGE: Asks = ("How old are you?", "What is your age?", "How many years have you lived?")
JOB: Asks = ("What is your occupation?", "What do you do for a living?", "What kind of work do you do?")
RETIRED: Asks = (
    "What was your occupation before you retired?",
    "What did you do for a living?",
    "From what work did you retire?",
)
SPECIES: Asks = ("What species are you?", "What kind of being are you?", "To which species do you belong?")
NATION: Asks = ("What is your nationality?", "Which nationality do you have?", "What nationality are you?")
ORIGIN: Asks = ("Where are you from?", "Where do you come from?", "What place do you come from originally?")
BORN: Asks = ("Where were you born?", "What is your birthplace?", "In which place did you come into the world?")
YEAR: Asks = ("In which year were you born?", "What is your year of birth?", "What year were you born in?")
RAISED: Asks = ("Where did you grow up?", "Where did you spend your childhood?", "In which place were you raised?")
HOME: Asks = ("Where do you live?", "Where is your home?", "In which place do you live?")
WORK: Asks = ("Where do you work?", "Who is your employer?", "Which place employs you?")
SCHOOL: Asks = ("Where do you study?", "Which school do you attend?", "At which place are you a student?")
STUDY: Asks = ("What do you study?", "Which subject are you studying?", "What is your field of study?")
HAIR: Asks = ("What colour is your hair?", "What is your hair colour?", "Which colour of hair do you have?")
EYES: Asks = ("What colour are your eyes?", "What is your eye colour?", "Which colour of eyes do you have?")
HEIGHT: Asks = ("How tall are you?", "What is your height?", "What do you measure from head to foot?")
BIRTHDAY: Asks = ("When is your birthday?", "On what date were you born?", "Which day do you get a year older?")
HOBBY: Asks = ("What is a hobby of yours?", "What do you like to do in your free time?", "What pastime do you enjoy?")
HATE: Asks = ("What do you hate?", "What do you dislike?", "What can you not stand?")
FEAR: Asks = ("What are you afraid of?", "What do you fear?", "What frightens you?")
PLAY: Asks = ("Which instrument do you play?", "What instrument can you play?", "What do you make music on?")
COLLECT: Asks = ("What do you collect?", "What is in your collection?", "Which things do you gather as a collector?")
MARRIED: Asks = ("Who are you married to?", "What is the name of your spouse?", "Whom did you marry?")
MADE: Asks = ("Who created you?", "Who made you?", "Whose creation are you?")
SIGN: Asks = ("What is your star sign?", "What is your zodiac sign?", "Under which sign were you born?")
NICK: Asks = ("What is your nickname?", "What do your friends call you?", "By what nickname do you go?")
NAME: Asks = ("What is your name?", "What are you called?", "Who am I talking to?")
