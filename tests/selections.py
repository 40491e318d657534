"""Which tests `make test` leaves to `make test-all`, and which modules `make test-fast` runs.

docs/decisions/0113 gives the reasons and the numbers.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Keep:
    """`make test` runs the tests whose names begin so; all others of the module are extended."""

    quick: tuple[str, ...]

    def is_extended(self, name: str) -> bool:
        """Return whether only `make test-all` runs this test: `Class::function[case]`."""
        return not name.startswith(self.quick)

    @property
    def names(self) -> tuple[str, ...]:
        """The beginnings of names that the module must have."""
        return self.quick


@dataclass(frozen=True)
class Move:
    """The tests whose names begin so are extended; `make test` runs all others of the module."""

    extended: tuple[str, ...]

    def is_extended(self, name: str) -> bool:
        """Return whether only `make test-all` runs this test: `Class::function[case]`."""
        return name.startswith(self.extended)

    @property
    def names(self) -> tuple[str, ...]:
        """The beginnings of names that the module must have."""
        return self.extended


EXTENDED: dict[str, Keep | Move] = {
    # Faults: each kind of fault keeps one real case.
    "test_faults": Keep((
        "TestTheFlowIsKilled::test_the_next_run_finishes_the_deploy_and_does_its_own[after loaded]",
        "TestABadCandidate::test_it_is_rejected[otherwise than offline]",
        "TestABadCandidate::test_golden_requests_are_replayed_and_become_the_warmup",
        "TestABadVersion::test_it_is_withdrawn_by_the_run_itself",
        "TestADamagedJournal::test_what_was_proven_stays",
        "TestTheServerIsKilled::test_the_next_run_starts_it_first",
        "TestTheDisk::test_a_full_disk_publishes_nothing",
        "TestTheDisk::test_a_read_only_disk_is_refused_at_preflight",
        "TestRollingBack",
    )),
    "test_chaos": Keep(tuple(f"test_the_next_run_deploys_after_a_kill[{seed}]" for seed in range(5))),
    "test_real_server_faults": Keep(()),
    "test_power_loss": Keep((
        "test_recovery_survives_every_power_loss", "test_a_removed_fsync_is_caught[of state files]",
    )),
    "test_night_faults": Keep(()),  # test_nights kills worker, flow and trainer; test_training the trainer
    "test_docker_faults": Keep(("test_the_server_has_no_way_out_and_the_relay_no_rights",)),
    "test_resume": Move((
        "test_a_trainer_that_is_killed_and_that_stalls_is_resumed_in_the_same_flow_run",
        "TestDeterministic::test_killed_at_random_steps_the_variables_are_bit_identical",
        "test_what_a_worker_ends_leaves_a_checkpoint_and_no_process",
    )),
    "test_op_libraries": Move((
        "TestPipeline::test_does_not_export_ops_that_are_not_declared", "test_serves_models_of",
    )),
    "test_training": Move((
        "test_an_interrupted_flow_leaves_a_checkpoint_and_no_process",
        "test_a_killed_flow_takes_its_trainer_along_and_the_trainer_saves",
    )),
    # Clusters across processes, hosts and containers.
    "test_cluster": Move((
        "test_two_workers_through_the_whole_chain_with_one_killed_on_the_way",
        "test_a_killed_parameter_server_comes_back_and_a_killed_chief_takes_all_along",
        "test_a_cluster_in_step",
    )),
    "test_cluster_across": Move(("TestHosts::",)),
    "test_cluster_containers": Keep(()),
    "test_strategies": Move(("test_mirrored_on_two_devices_through_the_whole_chain",)),
    "test_accelerators": Move(("test_a_second_training_waits_for_the_gpu",)),
    # Whole flows that differ in one setting.
    "test_whole_flow": Move((
        "TestGate::test_the_next_run_deploys_again",
        "test_the_second_night_is_held_against_what_is_served",
        "test_a_candidate_that_reads_files_is_rejected",
    )),
    "test_best_checkpoint": Move(("test_the_best_of_real_training_is_evaluated_and_exported",)),
    "test_warm_start": Move(("test_the_example_begins_with_the_served_version",)),
    "test_tutorial": Keep(()),
    "test_examples": Move((
        "test_raw_tensors_answers_predict_and_rows_of_json", "test_plain_graph_answers_classify_and_predict",
    )),
    "test_keras_models": Move((
        "test_a_warm_start_is_by_the_names_of_the_variables[checkpoint-saver]",
        "test_a_warm_start_is_by_the_names_of_the_variables[SavedModel-checkpoint]",
    )),
    "test_init": Move((
        "TestRuns::test_it_trains_and_validates[TFRecord, a regression]",
        "TestRuns::test_it_trains_and_validates[a canned Estimator of a factory]",
    )),
    "test_night_pages": Keep(()),
    "test_messy_data": Move((
        "TestPenguins::test_it_is_deployed_and_tells_species_apart", "TestPenguins::test_it_is_asked",
    )),
    "test_every_estimator": Keep((
        "test_it_trains_exports_and_validates[DNNLinearCombinedClassifier-",
        "test_it_trains_exports_and_validates[DNNEstimator-MultiHead-",
        "test_it_trains_exports_and_validates[LinearRegressor-",
        "test_nothing_that_a_yaml_may_name_is_left_out",
    )),
    "test_mutations": Keep((
        "test_a_changed_variable_is_rejected[one weight of the last layer, by 1e-6 of its value]",
        "test_a_changed_variable_is_rejected[two labels swapped]",
        "test_a_changed_output_is_rejected[an output truncated to bfloat16]",
        "test_a_changed_output_is_rejected[rows in reverse order]",
        "test_a_changed_receiver_is_rejected[another default for a missing feature]",
        "test_a_changed_receiver_is_rejected[one feature scaled]",
        "test_there_are_twenty_mutations",
    )),
    "test_machines": Keep(("test_two_machines", "test_a_run_deploys_on_an_odd_machine")),
    # Nights, through a Prefect server with workers.
    "test_alerts": Move(("test_a_night_without_a_deployment_is_told_in_time",)),
    "test_alert_delays": Keep(("test_a_bad_configuration",)),
    "test_nights": Move((
        "test_missed_nights_are_one_run", "test_a_run_survives_its_worker",
        "test_killed_before_its_first_stage",
    )),
    "test_trigger": Move((
        "TestDeployed::test_cancelled_it_leaves_a_checkpoint_and_what_serves",
        "TestNotDeployed::test_a_failed_run_exits_with_1",
        "test_no_worker_takes_it",
    )),
    "test_operations": Keep(()),
    "test_ci_recipes": Keep(("test_the_recipes_keep_the_reports_when_the_run_fails",)),
    "test_browser": Keep(("TestTheRun::", "test_the_browser_asked_nobody_else")),
    # Containers.
    "test_systemd": Keep(()),
    "test_compose": Keep(("test_nothing_starts_without_a_password", "test_only_loopback_is_listened_on")),
    "test_docker_flow": Keep((
        "test_where_an_engine_answers_auto_means_a_container",
        "test_the_container_answers_for_the_held_out_digits",
        "test_the_container_can_do_no_harm",
        "test_more_processors_than_there_are_is_told_first",
        "test_a_proven_container_comes_back_with_the_machine",
        "test_a_second_run_swaps_into_the_same_container",
        "test_a_damaged_record_is_rebuilt_from_the_container",
        "test_stop_drains_and_removes_the_container",
        "test_a_run_after_stop_starts_a_new_container",
    )),
    "test_published_servers": Keep((
        "test_a_server_with_tls_is_proven_and_swapped",
        "test_keys_that_no_run_could_ask_with_are_told_first",
        "test_an_address_of_another_machine_is_told_first",
    )),
    # The model server: long runs under load, and waits for polls of the file system.
    "test_model_server_swaps": Keep(("test_no_answer_fails_or_lies_through_ten_swaps",)),
    "test_model_server_copies": Keep(("test_a_slow_copy_is_not_loaded_before_it_has_ended",)),
    "test_model_server_policies": Keep((
        "test_a_policy_says_which_versions_are_served",
        "test_the_latest_versions_move_up_and_down",
        "test_only_int64_names_are_versions",
    )),
    "test_model_server_processes": Keep((
        "test_a_killed_worker_is_replaced",
        "test_sigterm_ends_all",
        "test_sigusr1_hands_the_port_over",
    )),
    # SavedModels by the C++ API.
    "test_graph_pipelines": Move(("test_cpp_",)),
    # Measurements.
    "test_benchmarks": Keep(()),
    "test_relay_benchmark": Keep(()),
}  # fmt: skip
"""Module -> which of its tests `make test` runs. A module that is not here runs whole."""
COVERED_BY = {
    "test_night_pages": "test_run_report",
    "test_benchmarks": "test_latency_ratios",
    "test_cluster_containers": "test_cluster",
    "test_night_faults": "test_nights",
    "test_operations": "test_documentation",
    "test_real_server_faults": "test_damage_matrix",
    "test_relay_benchmark": "test_docker_flow",
    "test_systemd": "test_service_command",
    "test_tutorial": "test_documentation",
}
"""Module that is extended whole -> the module whose quick tests have its subject."""

FAST = (
    "alerts", "asking", "audit", "cli", "comparison", "config", "data_gates", "deploy_journal", "deploy_lock",
    "deployments", "diff", "documentation", "fork_server", "image_errors", "init", "init_guesses", "junit",
    "latency_ratios", "locks", "log_lines", "mistakes", "model_server", "model_server_rest",
    "model_server_routing", "model_server_states", "model_server_units", "model_servers",
    "model_versions", "overrides", "plan", "prefect", "prefect_database", "references", "reports",
    "run_folders", "run_metrics", "run_records", "run_report", "run_retention", "selections",
    "served_answers", "service_command", "status_words", "trigger_verdicts", "version_checksums",
)  # fmt: skip
"""Modules `test_<name>` of `make test-fast`: no flow, and one model server for all of them."""


def is_extended(module: str, name: str) -> bool:
    """Return whether only `make test-all` runs this test of a module."""
    return module in EXTENDED and EXTENDED[module].is_extended(name)


def stale(names: dict[str, list[str]], tests: Path) -> str:
    """Return an entry of the table that fits no test; empty if each fits one.

    `names` has the tests of each module that was collected whole.
    """
    for module, selection in EXTENDED.items():
        if not (tests / f"{module}.py").is_file():
            return f"{module}: no such module"
        for start in selection.names if module in names else ():
            if not any(name.startswith(start) for name in names[module]):
                return f"{module}: no test begins with {start!r}"
    return ""


if __name__ == "__main__":
    sys.stdout.write(" ".join(f"tests/test_{name}.py" for name in FAST))
