"""Compares nfold's tokenizer with the `tokenizers` package.

    check_tokenizer.py encode TOKENIZER.json DOCUMENTS.json
        every document must give the ids that nfold wrote beside it, with the
        file as it is and after the package has saved it again; and decode to
        the same text
    check_tokenizer.py train TOKENIZER.json DOCUMENTS.json
        the package, trained on the documents, must learn the same tokenizer
    check_tokenizer.py make TOKENIZER.json DOCUMENTS.json
        writes a tokenizer that the package trained, and its ids

DOCUMENTS.json: [{"text": ..., "ids": [...]}, ...]. Exit code 0 when all agree.
"""

import json
import sys

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers


def trained(documents, vocab_size):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (document["text"] for document in documents)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def check_encoding(tokenizer, documents):
    for number, document in enumerate(documents):
        theirs = tokenizer.encode(document["text"])
        ours = document["ids"]
        if theirs.ids != ours:
            pairs = enumerate(zip(theirs.ids, ours))
            at = next((i for i, (a, b) in pairs if a != b), -1)
            near = theirs.offsets[at][0] if theirs.offsets else 0
            text = document["text"][max(0, near - 20) : near + 20]
            sys.exit(
                f"document {number}, token {at}, near {text!r}: "
                f"tokenizers {theirs.ids[at:at + 5]}, nfold {ours[at:at + 5]}"
            )
        text = tokenizer.decode(ours, skip_special_tokens=False)
        if text != document["text"]:
            sys.exit(f"document {number}: decodes to another text")


def main():
    command, path, documents_path = sys.argv[1:]
    with open(documents_path, encoding="utf-8") as file:
        documents = json.load(file)
    if command == "make":
        tokenizer = trained(documents, 600)
        tokenizer.save(path)
        for document in documents:
            document["ids"] = tokenizer.encode(document["text"]).ids
        with open(documents_path, "w", encoding="utf-8") as file:
            json.dump(documents, file)
        return
    ours = Tokenizer.from_file(path)
    if command == "encode":
        check_encoding(ours, documents)
        check_encoding(Tokenizer.from_str(ours.to_str()), documents)
        return
    theirs = trained(documents, ours.get_vocab_size())
    a, b = (json.loads(t.to_str())["model"] for t in (ours, theirs))
    for number, (x, y) in enumerate(zip(a["merges"], b["merges"])):
        if x != y:
            sys.exit(f"merge {number}: nfold {x}, tokenizers {y}")
    if a["vocab"] != b["vocab"]:
        sys.exit("the vocabularies differ")


if __name__ == "__main__":
    main()
