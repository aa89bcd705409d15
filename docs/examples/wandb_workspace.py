"""Makes the saved view of a W&B project in which the runs of an experiment read well.

pip install 'kd-convnext[dashboard]'
python wandb_workspace.py ENTITY/PROJECT [TITLE]

Runs are grouped by experiment, then by name (student_from_teacher): repeats become one line with its spread.
"""

import sys

from wandb_workspaces import reports, workspaces

STUDENT_TERMS = ("train/loss_feature", "train/loss_soft", "train/loss_focal")
LEARNING = ("val/f1_macro", "val/lesion/f1_macro", "val/loss", "train/loss", *STUDENT_TERMS)
SCORES = ("test/f1_macro", "test/lesion/f1_macro", "test/accuracy", "test/ece")
PICTURES = ("test/confusion_matrix", "test/reliability", "test/heat_maps", "test/misclassified")
TABLES = ("test/per_class_table", "test/predictions")


def workspace(entity: str, project: str, title: str = "Experiment") -> workspaces.Workspace:
    """Lays the view out.

    Args:
        entity: User or team.
        project: Its project.
        title: Of the view.

    Returns:
        The view, not saved yet.
    """
    panels = reports.v2
    spread = {"groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
    curves = [panels.LinePlot(title=name, x="epoch", y=[name], **spread) for name in LEARNING]
    bars = [panels.BarPlot(title=name, metrics=[name], **spread) for name in SCORES]
    pictures = [panels.MediaBrowser(title=name, media_keys=[name]) for name in PICTURES]
    tables = [panels.WeavePanelSummaryTable(table_name=name) for name in TABLES]
    parts = {"Learning": curves, "Test": [*bars, pictures[0], pictures[1], tables[0]]}
    parts["Mistakes"] = [tables[1], pictures[2], pictures[3]]
    groups = [workspaces.Metric("Group"), workspaces.Metric("Name")]
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=title,
        sections=[workspaces.Section(name=name, panels=held, is_open=True) for name, held in parts.items()],
        runset_settings=workspaces.RunsetSettings(groupby=groups),
    )


if __name__ == "__main__":
    print(workspace(*sys.argv[1].split("/"), *sys.argv[2:]).save().url)
