"""What all rooms need and no one owns: documents, files, checks, protocols, specs."""

from circuitspex._shared.checks import check_gates, check_masks, did_you_mean
from circuitspex._shared.declared import (
    Count,
    Declared,
    declared,
    fit_all,
    fit_fields,
    short,
    wanted,
)
from circuitspex._shared.documents import (
    Saved,
    pack_matrix,
    read_document,
    unpack_matrix,
    write_document,
)
from circuitspex._shared.files import (
    fsync_file,
    fsync_folder,
    make_folder,
    write_atomically,
    write_result,
)
from circuitspex._shared.mappings import parse_mapping, read_mapping
from circuitspex._shared.protocols import (
    GRADIENT_COST,
    DifferentiableSetFunction,
    Interaction,
    SampledDifferentiableSetFunction,
    SampledSetFunction,
    SetFunction,
)
from circuitspex._shared.spec import RECIPE, Spec, current_versions, describe_differences
