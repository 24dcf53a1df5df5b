"""3D Slicer module: register two volumes by MorphZoo. Its folder goes into Slicer's list of module paths."""

import ctk
import qt
from MorphZooLib.logic import MorphZooLogic as Registration
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleWidget,
)

import slicer

BUNDLES = ("synthmorph", "voxelmorph", "hypermorph", "voxelmorph_probabilistic", "avsm")
SETTING = "MorphZoo/command"


class MorphZoo(ScriptedLoadableModule):
    """What Slicer shows of the module."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = "MorphZoo"
        parent.categories = ["Registration"]
        parent.contributors = ["MorphZoo contributors"]
        parent.helpText = "Register a volume to another one by a learned deformable method. For research."
        parent.acknowledgementText = "The command morphzoo must be installed in an environment of its own."


class MorphZooLogic(ScriptedLoadableModuleLogic, Registration):
    """The logic, as Slicer wants it named."""

    def __init__(self, *args, **options):
        ScriptedLoadableModuleLogic.__init__(self)
        Registration.__init__(self, *args, **options)


class MorphZooWidget(ScriptedLoadableModuleWidget):
    """The panel: two volumes, a method, the command, and a button."""

    def setup(self):
        ScriptedLoadableModuleWidget.setup(self)
        box = ctk.ctkCollapsibleButton()
        box.text = "Register"
        self.layout.addWidget(box)
        form = qt.QFormLayout(box)
        self.fixed = self._selector("vtkMRMLScalarVolumeNode", form, "Fixed volume")
        self.moving = self._selector("vtkMRMLScalarVolumeNode", form, "Moving volume")
        self.labels = self._selector("vtkMRMLLabelMapVolumeNode", form, "Labels of the moving volume (optional)")
        self.bundle = qt.QComboBox()
        self.bundle.addItems(list(BUNDLES))
        form.addRow("Method", self.bundle)
        self.options = qt.QLineEdit()
        self.options.setPlaceholderText("--quality fast --affine torch")
        form.addRow("Options", self.options)
        self.command = qt.QLineEdit(qt.QSettings().value(SETTING) or "morphzoo")
        form.addRow("Command", self.command)
        self.button = qt.QPushButton("Register")
        form.addRow(self.button)
        self.answer = qt.QLabel()
        self.answer.setWordWrap(True)
        form.addRow(self.answer)
        self.button.connect("clicked(bool)", self.onRegister)
        self.layout.addStretch(1)

    @staticmethod
    def _selector(kind, form, label):
        selector = slicer.qMRMLNodeComboBox()
        selector.nodeTypes = [kind]
        selector.noneEnabled = True
        selector.addEnabled = selector.removeEnabled = False
        selector.setMRMLScene(slicer.mrmlScene)
        form.addRow(label, selector)
        return selector

    def onRegister(self):
        moving, fixed = self.moving.currentNode(), self.fixed.currentNode()
        if moving is None or fixed is None:
            slicer.util.errorDisplay("Choose a moving and a fixed volume.")
            return
        qt.QSettings().setValue(SETTING, self.command.text)
        self.button.enabled = False
        self.answer.text = "registering ..."
        try:
            with slicer.util.tryWithErrorDisplay("MorphZoo could not register the volumes.", waitCursor=True):
                logic = MorphZooLogic(self.command.text, wait=slicer.app.processEvents)
                result = logic.register(
                    moving,
                    fixed,
                    bundle=self.bundle.currentText,
                    labels=self.labels.currentNode(),
                    options=self.options.text,
                )
                slicer.util.setSliceViewerLayers(background=fixed, foreground=result.warped, foregroundOpacity=0.5)
                first = result.metrics.get("ncc_before", result.metrics.get("ncc_aligned"))
                self.answer.text = f"Correlation {first:.3f} before, {result.metrics['ncc_after']:.3f} after."
        finally:
            self.button.enabled = True
            if self.answer.text == "registering ...":
                self.answer.text = ""
