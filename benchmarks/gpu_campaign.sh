#!/bin/bash
# Train the bundles' networks within MINUTES on one GPU, in four lanes side by side; weights and curves go to OUTPUT.
#
#     benchmarks/gpu_campaign.sh MAPS LABELS_CSV MINUTES OUTPUT [word of device_training ...]
#
# MAPS is a file of device_maps. Each training writes its weights and curve every minute, so that a cut run keeps them.
# A rehearsal on the CPU: ... MAPS labels.csv 2 OUTPUT --device cpu --precision float32 --crop 32
set -u
maps=$1 table=$2 minutes=$3 output=$4
shift 4
words=("$@")
mkdir -p "$output"

train() { # NAME SHARE BUNDLE INITIAL [words]
    local name=$1 share=$2 bundle=$3 initial=$4
    shift 4
    python3 -W ignore -m benchmarks.device_training "$maps" --table "$table" --bundle "$bundle" --initial "$initial" \
        --name "$name" --minutes "$(python3 -c "print($minutes * $share)")" --output "$output" "$@" ${words[@]+"${words[@]}"} \
        >"$output/$name.log" 2>&1 || echo "$name: failed, see $output/$name.log"
}
model() { echo "bundles/$1/models/${2:-model}.pt"; }

(
    train synthmorph 1 synthmorph "$(model synthmorph)" --contrasts 0 0.05 --table_share 0.5 --folding_weight 30 --channels_last
) &
(
    train voxelmorph 0.55 voxelmorph "$(model voxelmorph)" --folding_weight 30
    begin=$output/voxelmorph.pt
    [ -f "$begin" ] || begin=$(model voxelmorph)
    train voxelmorph_probabilistic 0.3 voxelmorph_probabilistic "$begin" --learning_rate 0.0003
    train voxelmorph_calibrated 0.15 voxelmorph_probabilistic "$output/voxelmorph_probabilistic.pt" --calibrate --learning_rate 0.001
) &
(
    train hypermorph 0.55 hypermorph "$(model voxelmorph)" --learning_rate 0.0007 --folding_weight 30
    train avsm 0.45 avsm "$(model avsm)" --folding_weight 30
) &
(
    train synthmorph_2d 0.4 synthmorph "$(model synthmorph model_2d)" --spatial_dims 2 --pairs 8 --contrasts 0 0.05 \
        --table_share 0.5 --channels_last
    train rdmm 0.6 rdmm "$(model rdmm)" --folding_weight 30
) &
wait
tail -qn 1 "$output"/*.log
