"""CIFAR-10 and CIFAR-100, read from the files that their author publishes.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009; the md5 sums
are those of https://www.cs.toronto.edu/~kriz/cifar.html and of torchvision's readers, the sha256
sums were taken from files that had those md5 sums.
"""

from __future__ import annotations

from spikeformer_lt.images.files import BatchFiles
from spikeformer_lt.published import Archive, PublishedFile
from spikeformer_lt.registry import register_dataset
from spikeformer_lt.splits import DataOptions, Splits, takes

_PAGE = "https://www.cs.toronto.edu/~kriz/"

_FINE = """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab
crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard
lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout
tulip turtle wardrobe whale willow_tree wolf woman worm"""

# fmt: off
CIFAR10 = BatchFiles(
    name="cifar10",
    folder="cifar-10-batches-py",
    archive=Archive(
        "cifar-10-python.tar.gz", 170_498_071, "c58f30108f718f92721af3b95e74349a",
        url=f"{_PAGE}cifar-10-python.tar.gz", unpacked=203_000_000, members=100,
    ),
    train=(
        PublishedFile("data_batch_1", 31_035_704, "c99cafc152244af753f735de768cd75f",
                      "54636561a3ce25bd3e19253c6b0d8538147b0ae398331ac4a2d86c6d987368cd"),
        PublishedFile("data_batch_2", 31_035_320, "d4bba439e000b95fd0a9bffe97cbabec",
                      "766b2cef9fbc745cf056b3152224f7cf77163b330ea9a15f9392beb8b89bc5a8"),
        PublishedFile("data_batch_3", 31_035_999, "54ebc095f3ab1f0389bbae665268c751",
                      "0f00d98ebfb30b3ec0ad19f9756dc2630b89003e10525f5e148445e82aa6a1f9"),
        PublishedFile("data_batch_4", 31_035_696, "634d18415352ddfa80567beed471001a",
                      "3f7bb240661948b8f4d53e36ec720d8306f5668bd0071dcb4e6c947f78e9682b"),
        PublishedFile("data_batch_5", 31_035_623, "482c414d41f54cd18b22e5b47cb7c3cb",
                      "d91802434d8376bbaeeadf58a737e3a1b12ac839077e931237e0dcd43adcb154"),
    ),
    test=(
        PublishedFile("test_batch", 31_035_526, "40351d587109b95175f43aff81a1287e",
                      "f53d8d457504f7cff4ea9e021afcf0e0ad8e24a91f3fc42091b8adef61157831"),
    ),
    label_key="labels",
    sizes=(32,),
    num_classes=10,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    augment="spikformer_cifar",
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship",
             "truck"),
)
CIFAR100 = BatchFiles(
    name="cifar100",
    folder="cifar-100-python",
    archive=Archive(
        "cifar-100-python.tar.gz", 169_001_437, "eb9058c3a382ffc7106e4002c42a8d85",
        url=f"{_PAGE}cifar-100-python.tar.gz", unpacked=203_000_000, members=100,
    ),
    train=(PublishedFile("train", 155_249_918, "16019d7e3df5f24257cddd939b257f8d"),),
    test=(PublishedFile("test", 31_049_193, "f0ef6b0ae62326f3e7ffdfab6717acfc"),),
    label_key="fine_labels",
    sizes=(32,),
    num_classes=100,
    # Its own numbers: the published Spikingformer and QKFormer runs used those of CIFAR-10 here.
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
    augment="spikformer_cifar",
    classes=tuple(_FINE.split()),
)
# fmt: on


@register_dataset
@takes(DataOptions)
def cifar10(options: DataOptions) -> Splits:
    """CIFAR-10: 50,000 training and 10,000 test images of 32 x 32 RGB pixels, 10 classes.

    `root` holds ``cifar-10-batches-py`` or its archive (170 MB).
    """
    return CIFAR10.splits(options)


@register_dataset
@takes(DataOptions)
def cifar100(options: DataOptions) -> Splits:
    """CIFAR-100: 50,000 training and 10,000 test images of 32 x 32 RGB pixels, 100 fine classes.

    `root` holds ``cifar-100-python`` or its archive (169 MB).
    """
    return CIFAR100.splits(options)
