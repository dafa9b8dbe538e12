"""What is built in, by kind."""

from __future__ import annotations

from collections.abc import Iterable

from persona_lab.api import DatasetReader, Evaluator, Exporter, Strategy, hookimpl


@hookimpl
def persona_lab_strategies() -> Iterable[type[Strategy]]:
    """prompt, steer, lora, freeze, hybrid, full, qlora, continue, foundation, aspects."""
    from persona_lab_builtin.strategies.aspects import AspectsStrategy
    from persona_lab_builtin.strategies.foundation import FoundationStrategy
    from persona_lab_builtin.strategies.freeze import FreezeStrategy
    from persona_lab_builtin.strategies.full import FullStrategy
    from persona_lab_builtin.strategies.go_on import ContinueStrategy
    from persona_lab_builtin.strategies.hybrid import HybridStrategy
    from persona_lab_builtin.strategies.lora import LoRAStrategy
    from persona_lab_builtin.strategies.prompt import PromptStrategy
    from persona_lab_builtin.strategies.qlora import QLoRAStrategy
    from persona_lab_builtin.strategies.steer import SteerStrategy

    return [
        PromptStrategy,
        LoRAStrategy,
        QLoRAStrategy,
        FreezeStrategy,
        FullStrategy,
        HybridStrategy,
        ContinueStrategy,
        FoundationStrategy,
        AspectsStrategy,
        SteerStrategy,
    ]


@hookimpl
def persona_lab_evaluators() -> Iterable[type[Evaluator]]:
    """held_out_gain, voice, reply_ranking, break_character, facts, drift, parroting, traits, forgetting, geometry."""
    from persona_lab_builtin.evaluators.break_character import BreakCharacter
    from persona_lab_builtin.evaluators.drift import Drift
    from persona_lab_builtin.evaluators.facts import Facts
    from persona_lab_builtin.evaluators.forgetting import Forgetting
    from persona_lab_builtin.evaluators.geometry import Geometry
    from persona_lab_builtin.evaluators.held_out_gain import HeldOutGain
    from persona_lab_builtin.evaluators.parroting import Parroting
    from persona_lab_builtin.evaluators.reply_ranking import ReplyRanking
    from persona_lab_builtin.evaluators.traits import Traits
    from persona_lab_builtin.evaluators.voice import VoiceEvaluator

    return [
        HeldOutGain,
        VoiceEvaluator,
        ReplyRanking,
        BreakCharacter,
        Facts,
        Drift,
        Parroting,
        Traits,
        Forgetting,
        Geometry,
    ]


@hookimpl
def persona_lab_dataset_readers() -> Iterable[type[DatasetReader]]:
    """Rows (OpenAI messages, ShareGPT, Alpaca, completion text, columns), chats, scripts, documents."""
    from persona_lab_builtin.readers.alpaca import AlpacaReader
    from persona_lab_builtin.readers.columns import ColumnsReader
    from persona_lab_builtin.readers.completion import CompletionReader
    from persona_lab_builtin.readers.discord import DiscordReader
    from persona_lab_builtin.readers.docx import DocxReader
    from persona_lab_builtin.readers.epub import EpubReader
    from persona_lab_builtin.readers.irc import IRCReader
    from persona_lab_builtin.readers.openai_messages import OpenAIMessagesReader
    from persona_lab_builtin.readers.pdf import PdfReader
    from persona_lab_builtin.readers.prose import ProseReader
    from persona_lab_builtin.readers.screenplay import ScreenplayReader
    from persona_lab_builtin.readers.script import ScriptReader
    from persona_lab_builtin.readers.sharegpt import ShareGPTReader
    from persona_lab_builtin.readers.sillytavern import SillyTavernReader
    from persona_lab_builtin.readers.telegram import TelegramReader
    from persona_lab_builtin.readers.whatsapp import WhatsAppReader

    return [
        OpenAIMessagesReader,
        SillyTavernReader,
        ShareGPTReader,
        AlpacaReader,
        IRCReader,
        WhatsAppReader,
        TelegramReader,
        DiscordReader,
        ScriptReader,
        ScreenplayReader,
        ColumnsReader,
        CompletionReader,
        EpubReader,
        PdfReader,
        DocxReader,
        ProseReader,
    ]


@hookimpl
def persona_lab_exporters() -> Iterable[type[Exporter]]:
    """adapter, merged, gguf, control-vector, ollama, bundle."""
    from persona_lab_builtin.exporters.adapter import AdapterExporter
    from persona_lab_builtin.exporters.bundle import BundleExporter
    from persona_lab_builtin.exporters.control_vector import ControlVectorExporter
    from persona_lab_builtin.exporters.gguf import GGUFExporter
    from persona_lab_builtin.exporters.merged import MergedExporter
    from persona_lab_builtin.exporters.ollama import OllamaExporter

    return [
        AdapterExporter,
        MergedExporter,
        GGUFExporter,
        ControlVectorExporter,
        OllamaExporter,
        BundleExporter,
    ]
