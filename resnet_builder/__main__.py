"""``python -m resnet_builder`` is ``resnet-build``."""

from resnet_builder.cli.main import main

if __name__ == "__main__":
    main()
