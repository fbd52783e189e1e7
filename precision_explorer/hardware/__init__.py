"""What the device is, what its arithmetic units can do, what its energy meters say. No torch."""

from precision_explorer.hardware.capabilities import (
    bf16_native,
    fp8_native,
    fp16_native,
    int8_native,
    microscaling_native,
    tf32_native,
)
from precision_explorer.hardware.libraries import library_versions, relevant_variables
from precision_explorer.hardware.profile import DeviceFacts, device_facts, resolve_device
from precision_explorer.hardware.sensors import (
    CpuTimeSensor,
    EnergySensor,
    NvmlSensor,
    RaplSensor,
    UnavailableSensor,
    nvml_process_bytes,
    open_sensor,
)

__all__ = [
    "CpuTimeSensor",
    "DeviceFacts",
    "EnergySensor",
    "NvmlSensor",
    "RaplSensor",
    "UnavailableSensor",
    "bf16_native",
    "device_facts",
    "fp8_native",
    "fp16_native",
    "int8_native",
    "library_versions",
    "microscaling_native",
    "nvml_process_bytes",
    "open_sensor",
    "relevant_variables",
    "resolve_device",
    "tf32_native",
]
