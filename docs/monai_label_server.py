"""MONAI Label's command without torchvision's binary part, which pip's wheel has for CUDA only.

python docs/monai_label_server.py start_server --app APP --studies STUDIES ...
"""

import torch


def main() -> None:
    # The two operators that torchvision's Python part expects its binary to have defined. No bundle here uses them.
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

    from monailabel.main import Main

    Main().run()


if __name__ == "__main__":
    main()
