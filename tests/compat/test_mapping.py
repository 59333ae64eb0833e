"""Every official option is accepted by name, in the official order, and stands in its class's table of the page."""

import inspect
import re

import pytest

from cellray.compat.geneformer import (
    Classifier,
    EmbExtractor,
    InSilicoPerturber,
    InSilicoPerturberStats,
    TranscriptomeTokenizer,
)
from cellray.compat.helical import Geneformer, GeneformerConfig
from tests.conftest import REPOSITORY

OFFICIAL = {
    TranscriptomeTokenizer: "custom_attr_name_dict nproc chunk_size model_input_size special_token collapse_gene_ids "
    "use_h5ad_index keep_counts model_version gene_median_file token_dictionary_file gene_mapping_file",
    TranscriptomeTokenizer.tokenize_data: "data_directory output_directory output_prefix file_format input_identifier "
    "use_generator",
    EmbExtractor: "model_type num_classes emb_mode cell_emb_style gene_emb_style filter_data max_ncells emb_layer "
    "emb_label labels_to_plot forward_batch_size nproc summary_stat save_tdigest model_version token_dictionary_file",
    EmbExtractor.extract_embs: "model_directory input_data_file output_directory output_prefix output_torch_embs "
    "cell_state",
    EmbExtractor.get_state_embs: "cell_states_to_model model_directory input_data_file output_directory output_prefix "
    "output_torch_embs",
    EmbExtractor.plot_embs: "embs plot_style output_directory output_prefix max_ncells_to_plot kwargs_dict",
    InSilicoPerturber: "perturb_type perturb_rank_shift genes_to_perturb combos anchor_gene model_type num_classes "
    "emb_mode cell_emb_style filter_data cell_states_to_model state_embs_dict max_ncells cell_inds_to_perturb "
    "emb_layer forward_batch_size nproc model_version token_dictionary_file clear_mem_ncells",
    InSilicoPerturber.perturb_data: "model_directory input_data_file output_directory output_prefix",
    InSilicoPerturberStats: "mode genes_perturbed combos anchor_gene cell_states_to_model pickle_suffix model_version "
    "token_dictionary_file gene_name_id_dictionary_file",
    InSilicoPerturberStats.get_stats: "input_data_directory null_dist_data_directory output_directory output_prefix "
    "null_dict_list",
    Classifier: "classifier quantize cell_state_dict gene_class_dict filter_data rare_threshold max_ncells "
    "max_ncells_per_class training_args ray_config freeze_layers num_crossval_splits split_sizes stratify_splits_col "
    "no_eval forward_batch_size model_version token_dictionary_file nproc ngpu",
    Classifier.prepare_data: "input_data_file output_directory output_prefix split_id_dict test_size attr_to_split "
    "attr_to_balance max_trials pval_threshold",
    Classifier.train_all_data: "model_directory prepared_input_data_file id_class_dict_file output_directory "
    "output_prefix save_eval_output gene_balance",
    Classifier.evaluate_saved_model: "model_directory id_class_dict_file test_data_file output_directory output_prefix "
    "predict",
    Classifier.plot_conf_mat: "conf_mat_dict output_directory output_prefix custom_class_order",
    Classifier.plot_roc: "roc_metric_dict model_style_dict title output_directory output_prefix",
    Classifier.plot_predictions: "predictions_file id_class_dict_file title output_directory output_prefix "
    "custom_class_order kwargs_dict",
    Classifier.validate: "model_directory prepared_input_data_file id_class_dict_file output_directory output_prefix "
    "split_id_dict attr_to_split attr_to_balance gene_balance max_trials pval_threshold save_eval_output predict_eval "
    "predict_trainer n_hyperopt_trials save_gene_split_datasets debug_gene_split_datasets",
    GeneformerConfig: "model_name batch_size emb_layer emb_mode device accelerator nproc custom_attr_name_dict",
    Geneformer.process_data: "adata gene_names output_path use_raw_counts",
    Geneformer.get_embeddings: "dataset output_attentions output_genes",
}


@pytest.mark.parametrize("where", OFFICIAL, ids=lambda where: where.__qualname__)
def test_options_bear_their_official_names(where: type) -> None:
    names = [name for name in inspect.signature(where).parameters if name != "self"]
    expected = OFFICIAL[where].split()
    assert names[: len(expected)] == expected


PLACES = {
    *("input_data_file", "prepared_input_data_file", "test_data_file", "data_directory", "input_data_directory"),
    *("model_directory", "output_directory", "output_prefix", "embs", "adata", "dataset", "cell_states_to_model"),
}
"""What a method is given, in place of how it does its work; the examples show it."""
HELICAL = "helical in six lines"


def left_sides(page: str, section: str) -> set[str]:
    """Return the words in backticks on the left sides of a section's tables."""
    (text,) = (part for part in re.split(r"^##+ ", page, flags=re.M)[1:] if re.match(rf"{section}\b", part))
    cells = re.findall(r"^\|((?:`[^`]*`|[^|`])*)\|", text, flags=re.M)
    return {word for cell in cells for span in re.findall(r"`([^`]*)`", cell) for word in re.findall(r"\w+", span)}


@pytest.mark.parametrize("where", OFFICIAL, ids=lambda where: where.__qualname__)
def test_the_page_maps_every_option(where: type) -> None:
    page = (REPOSITORY / "docs" / "compat.md").read_text()
    section = HELICAL if "helical" in where.__module__ else where.__qualname__.split(".")[0]
    section = {"ClassifierPictures": "Classifier"}.get(section, section)
    named = set(OFFICIAL[where].split()) - (PLACES if not inspect.isclass(where) else set())
    assert sorted(named - left_sides(page, section)) == []


def test_an_option_of_another_class_does_not_count() -> None:
    page = "# A\n## B\n| `of_b`, `x(of_x)` | `right` |\n`text`\n## BC\n| `of_c` | |\n```\nof_code\n```\n"
    assert left_sides(page, "B") == {"of_b", "x", "of_x"}
    assert left_sides(page, "BC") == {"of_c"}
