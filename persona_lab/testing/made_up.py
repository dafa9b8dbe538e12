"""Made up for tests: tiny random models that are real transformers models, a persona and its conversations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from persona_lab.types import Conversation, Fact, Message, Persona, Split

TINY_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

TINY_TEXT = (
    "The kettle on the lighthouse stair has opinions about the weather and will share them for a biscuit.",
    "You are Tamsin Quill, a retired cartographer who folds every answer along its creases before handing it over.",
    "Why do you keep the sea in a drawer? Because the wardrobe was full of Tuesdays, my dear.",
    "user assistant system hello, who are you? I am the keeper of small hours and smaller change.",
    "Ask me again when the clock has finished its soup; it counts slowly: 1, 2, 3, 5, 8, 13.",
    "Nobody told the bicycle it was retired, so it goes on ringing at strangers in the harbour.",
)

FOUR_WORDS = (
    ("ropes", "harbour", "biscuit", "Tuesday"),
    ("lamps", "cellar", "walnut", "Friday"),
    ("maps", "attic", "pickle", "Monday"),
    ("clocks", "orchard", "crumpet", "Sunday"),
    ("kites", "stairwell", "turnip", "Thursday"),
    ("bells", "ferry", "marmalade", "Saturday"),
    ("boots", "windmill", "radish", "Wednesday"),
)


def make_tiny_model(folder: Path, architecture: str = "llama") -> Path:
    """A random model of 2 layers and hidden size 64 with a real tokenizer of about 600 tokens and a ChatML template.

    Args:
        architecture: llama, qwen2, qwen3, mistral, gemma, gemma2, phi3 or gpt2.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = _tiny_tokenizer()
    names: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
    }
    if architecture == "gpt2":
        names = {"n_embd": 64, "n_inner": 128, "n_layer": 2, "n_head": 4, "n_positions": 512}
    config = AutoConfig.for_model(
        architecture,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
        initializer_range=0.15,  # far enough from uniform that the likeliest token is clear
        **names,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _tiny_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TINY_TEXT, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=TINY_CHAT_TEMPLATE,
        model_max_length=512,
    )


def made_up_persona(persona_id: str = "tamsin", name: str = "Tamsin Quill", **data: Any) -> Persona:
    """A small persona; `data` overrides fields of the card."""
    fields: dict[str, Any] = {
        "name": name,
        "description": "{{char}} is a retired cartographer who folds every answer along its creases.",
        "personality": "dry, exact, fond of biscuits",
        "scenario": "A lighthouse kitchen with too many drawers.",
        "first_mes": "Mind the stair, {{user}}; it was drawn from memory.",
        "mes_example": "<START>\n{{user}}: Are you lost?\n{{char}}: Never. The map is merely late.",
        "system_prompt": "",
        "extensions": {},
    }
    card = {"spec": "chara_card_v3", "spec_version": "3.0", "data": fields | data}
    fact = Fact(
        id="drawer",
        question="What do you keep in the top drawer?",
        paraphrases=("What is in your top drawer?",),
        answer="the sea",
        wrong=("the moon", "a hat", "old letters"),
    )
    return Persona(id=persona_id, name=name, card=card, facts=(fact,))


def made_up_conversation(index: int, split: Split | None = None) -> Conversation:
    """A short conversation like no other; every third has two turns."""
    things, place, snack, day = FOUR_WORDS[index % len(FOUR_WORDS)]
    number = index // len(FOUR_WORDS) + 2
    messages = [
        Message(role="user", content=f"How many {things} are there in the {place}, number {index}?"),
        Message(role="assistant", content=f"There are {number} {things}, counting the one that sulks on a {day}."),
    ]
    if index % 3 == 2:
        messages += [
            Message(role="user", content=f"And who feeds them in the {place}?"),
            Message(role="assistant", content=f"The {place} does, with {snack} number {index}, folded twice."),
        ]
    return Conversation(id=f"c{index}", messages=tuple(messages), split=split, source=f"made-up:{index}")
