"""What the device is, what its arithmetic units can do, what its energy meters say. No torch."""

from precision_explorer.hardware.capabilities import (
    NEEDS,
    bf16_native,
    fp8_native,
    fp16_native,
    int8_native,
    microscaling_native,
    tf32_native,
)
from precision_explorer.hardware.device_profiles import (
    PROFILES,
    DeviceProfile,
    named_profile,
    profile_for,
)
from precision_explorer.hardware.libraries import (
    FLOORS,
    check_floors,
    library_versions,
    relevant_variables,
)
from precision_explorer.hardware.nvml import free_device_bytes, temperature_c
from precision_explorer.hardware.power import PowerReading
from precision_explorer.hardware.profile import (
    DeviceFacts,
    device_facts,
    resolve_device,
    with_those_beside,
)
from precision_explorer.hardware.readings import (
    CpuReadings,
    NvmlReadings,
    Reading,
    Readings,
    open_readings,
)
from precision_explorer.hardware.sensors import (
    CpuTimeSensor,
    EnergySensor,
    NvmlSensor,
    PowerMeter,
    RaplSensor,
    UnavailableSensor,
    nvml_process_bytes,
    open_sensor,
    process_bytes,
)
from precision_explorer.hardware.settings import container, device_settings
from precision_explorer.hardware.thermal import Cooling, cool_down
from precision_explorer.hardware.toolchain import compiler

__all__ = [
    "FLOORS",
    "NEEDS",
    "PROFILES",
    "Cooling",
    "CpuReadings",
    "CpuTimeSensor",
    "DeviceFacts",
    "DeviceProfile",
    "EnergySensor",
    "NvmlReadings",
    "NvmlSensor",
    "PowerMeter",
    "PowerReading",
    "RaplSensor",
    "Reading",
    "Readings",
    "UnavailableSensor",
    "bf16_native",
    "check_floors",
    "compiler",
    "container",
    "cool_down",
    "device_facts",
    "device_settings",
    "fp8_native",
    "fp16_native",
    "free_device_bytes",
    "int8_native",
    "library_versions",
    "microscaling_native",
    "named_profile",
    "nvml_process_bytes",
    "open_readings",
    "open_sensor",
    "process_bytes",
    "profile_for",
    "relevant_variables",
    "resolve_device",
    "temperature_c",
    "tf32_native",
    "with_those_beside",
]
